"""Every pipeline of the zoo with our schedulers: it runs, lands on the clean sample, and does as diffusers does."""

from __future__ import annotations

import copy
import functools
from typing import Any

import diffusers
import pytest
import torch
from landing import TOLERANCE, Probe, install
from torch import Tensor
from zoo import ZOO

import fastsample as fs
from fastsample.solvers import available

SDE = {"algorithm_type": "sde-dpmsolver++"}
RUNS = {"dpm": (fs.DPMSolverScheduler, {}), "ghvb": (fs.GHVBScheduler, {}), "sde": (fs.DPMSolverScheduler, SDE)}
LANDS = [fs.DPMSolverScheduler, fs.GHVBScheduler, fs.HeavyBallScheduler, fs.DDIMScheduler]
COUNTERPARTS = {
    diffusers.CogVideoXDDIMScheduler: fs.DDIMScheduler,
    diffusers.EDMEulerScheduler: fs.DDIMScheduler,
    diffusers.EulerDiscreteScheduler: fs.DDIMScheduler,
    diffusers.FlowMatchEulerDiscreteScheduler: fs.DDIMScheduler,
    diffusers.DPMSolverMultistepScheduler: fs.DPMSolverScheduler,
    diffusers.EDMDPMSolverMultistepScheduler: fs.DPMSolverScheduler,
    diffusers.UniPCMultistepScheduler: fs.UniPCScheduler,
}
KEEP_THEIRS = {"bria": "mu = None", "cosmos_2": "sigma_max = 80"}  # what our classes say to their configs
OURS = [name for name in ZOO if name not in KEEP_THEIRS]
REPRESENTATIVE = ["stable_diffusion", "stable_diffusion_xl_refiner", "flux", "wan"]


@functools.cache
def built(name: str) -> tuple[Any, Any]:
    """The pipeline, made once, and the scheduler that it was made with."""
    pipe = ZOO[name].build()
    return pipe, pipe.scheduler


def own_scheduler(name: str) -> Any:
    """A fresh scheduler like the pipeline's own."""
    return copy.deepcopy(built(name)[1])


def sample(name: str) -> Tensor:
    """What the pipeline gives with the scheduler that it has now, from the same seed every time."""
    return ZOO[name].sample(built(name)[0])


def sample_with(name: str, scheduler: Any) -> Tensor:
    """What it gives with `scheduler`."""
    built(name)[0].scheduler = scheduler
    return sample(name)


def land(name: str, scheduler: Any) -> Probe:
    """Where `scheduler` leads the pipeline if its network is exact."""
    pipe = built(name)[0]
    pipe.scheduler = own_scheduler(name)
    probe = install(pipe, scheduler)
    sample(name)
    return probe


def assert_lands(probe: Probe) -> None:
    """On the clean sample, along the exact trajectory."""
    assert probe.landed_error < TOLERANCE
    assert probe.drift < TOLERANCE


@pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if not entry.own_misses])
def test_the_own_scheduler_lands(name: str) -> None:
    """So the oracle means what the pipeline means."""
    assert land(name, own_scheduler(name)).landed_error < TOLERANCE


@pytest.mark.parametrize("scheduler", RUNS)
@pytest.mark.parametrize("name", OURS)
def test_it_runs(name: str, scheduler: str) -> None:
    kind, extra = RUNS[scheduler]
    assert torch.isfinite(sample_with(name, kind.from_config(own_scheduler(name).config, **extra))).all()


@pytest.mark.parametrize("scheduler", LANDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", OURS)
def test_it_lands(name: str, scheduler: type) -> None:
    assert_lands(land(name, scheduler.from_config(own_scheduler(name).config)))


@pytest.mark.parametrize("name", OURS)
def test_it_gives_what_the_own_scheduler_gives(name: str) -> None:
    """With the solver of the pipeline's own scheduler, and the network as it is."""
    own = own_scheduler(name)
    if type(own) not in COUNTERPARTS:
        pytest.skip(f"{type(own).__name__} is stochastic, or has a solver or a grid that none of ours has")
    want = sample_with(name, own)
    got = sample_with(name, COUNTERPARTS[type(own)].from_config(own_scheduler(name).config))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))


@pytest.mark.parametrize("solver", [name for name, solver in available().items() if not solver.stochastic])
@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_every_deterministic_solver_lands(name: str, solver: str) -> None:
    config = own_scheduler(name).config
    if available()[solver].whole_steps and name == "stable_diffusion_xl_refiner":
        pytest.skip("the base may stop between the stages of a step, as with diffusers' Heun")
    if not available()[solver].flow and fs.NoiseSchedule.from_config(config).kind == "flow":
        pytest.skip("not for flow matching")
    assert_lands(land(name, fs.create_scheduler(solver, config)))


@pytest.mark.parametrize("name", KEEP_THEIRS)
def test_others_say_so_in_one_line(name: str) -> None:
    """Before any evaluation: Bria gives mu to one class alone, Cosmos 2 rewrites its scheduler."""
    with pytest.raises(ValueError, match=KEEP_THEIRS[name]) as caught:
        sample_with(name, fs.DPMSolverScheduler.from_config(own_scheduler(name).config))
    assert "\n" not in str(caught.value)


def test_bria_runs_with_a_static_shift() -> None:
    """As the error above advises."""
    scheduler = fs.HeavyBallScheduler.from_config(own_scheduler("bria").config, use_dynamic_shifting=False, shift=3.0)
    assert torch.isfinite(sample_with("bria", scheduler)).all()
