"""Any scheduler put back to where it was goes on as it did; the denoisers are what a pipeline calls step by step."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from pipelines import SD_CONFIG
from torch import Tensor, nn
from turns import elsewhere
from zoo import ZOO

import fastsample as fs
from fastsample.pipelines.denoisers import denoisers
from fastsample.pipelines.stateful import Foreign, stateful

OURS: dict[str, Callable[[], Any]] = {
    "ghvb": lambda: fs.GHVBScheduler.from_config(SD_CONFIG),
    "unipc": lambda: fs.UniPCScheduler.from_config(SD_CONFIG, solver_order=3),
    "heun": lambda: fs.create_scheduler("heun", SD_CONFIG),
    "sde": lambda: fs.DPMSolverScheduler.from_config(SD_CONFIG, algorithm_type="sde-dpmsolver++"),
    "flow": lambda: fs.DEISScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config),
}
THEIRS: dict[str, Callable[[], Any]] = {
    name: functools.partial(getattr(diffusers, name).from_config, SD_CONFIG)
    for name in (
        *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler"),
        *("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler"),
        *("DEISMultistepScheduler", "KDPM2AncestralDiscreteScheduler", "SASolverScheduler", "IPNDMScheduler"),
    )
}
THEIRS["flow"] = lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)


def run(scheduler: Any, begin: int, end: int, sample: Tensor) -> list[Tensor]:
    """The samples of steps `begin` to `end`, of a smooth made-up network, noise drawn from the step's number."""
    samples = [sample]
    for index in range(begin, end):
        timestep = scheduler.timesteps[index]
        given = stateful(scheduler).scale_model_input(samples[-1], timestep)
        torch.manual_seed(index)
        result = scheduler.step(torch.sin(3 * given) + 0.1, timestep, samples[-1], return_dict=False)
        samples.append(result[0])
    return samples


@pytest.mark.parametrize("make", [*OURS.values(), *THEIRS.values()], ids=[*OURS, *THEIRS])
def test_a_scheduler_goes_on_from_where_it_was(make: Callable[[], Any]) -> None:
    """From every step, as often as one likes; a state stays what it was."""
    scheduler = make()
    scheduler.set_timesteps(8)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    own, count = stateful(scheduler), len(scheduler.timesteps)
    states, samples = [own.state()], [x]
    for index in range(count):
        samples.append(run(scheduler, index, index + 1, samples[-1])[-1])
        states.append(own.state())
    for index in [*reversed(range(count)), 0, count // 2, count // 2]:
        own.restore(states[index])
        found = run(scheduler, index, count, samples[index])
        assert all(map(torch.equal, found, samples[index:]))


@pytest.mark.parametrize("make", OURS.values(), ids=OURS)
def test_ours_are_put_back_in_one_thread(make: Callable[[], Any]) -> None:
    scheduler = make()
    x = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(6)
    first = scheduler.state()
    want = run(scheduler, 0, len(scheduler.timesteps), x)
    scheduler.restore(first)
    run(scheduler, 0, 3, x)

    def other() -> list[Tensor]:
        scheduler.set_timesteps(4)
        begin = scheduler.state()
        run(scheduler, 0, 2, x)
        scheduler.restore(begin)
        return run(scheduler, 0, len(scheduler.timesteps), x)

    alone = make()
    alone.set_timesteps(4)
    assert all(map(torch.equal, elsewhere(other), run(alone, 0, len(alone.timesteps), x)))
    assert all(map(torch.equal, run(scheduler, 3, len(scheduler.timesteps), want[3]), want[3:]))


def test_ours_need_no_adapter_and_theirs_do() -> None:
    assert all(stateful(scheduler := make()) is scheduler for make in OURS.values())
    assert all(isinstance(stateful(make()), Foreign) for make in THEIRS.values())


@pytest.mark.parametrize("name", ["ghvb", "flow"])
def test_the_schedule_is_that_of_the_config(name: str) -> None:
    scheduler = OURS[name]()
    times = [900.0, 500.0, 100.0]
    want = [fs.NoiseSchedule.from_config(scheduler.config).node_of(time) for time in times]
    assert [stateful(scheduler).schedule.node_of(time) for time in times] == want
    with pytest.raises(ValueError, match="beta_schedule"):
        _ = Foreign(type("Odd", (), {"config": {"beta_schedule": "none of ours"}})()).schedule


@pytest.mark.parametrize(
    "name",
    [
        *("stable_diffusion", "stable_diffusion_controlnet", "stable_diffusion_xl", "animate_diff", "shap_e", "dit"),
        *("flux", "wan", "wan_2_2", "hunyuan_video_15", "stable_audio"),
    ],
)
def test_the_denoisers_are_what_is_called_step_by_step(name: str) -> None:
    """Of all the networks of a pipeline: text encoders and autoencoders run once or twice a call."""
    entry = ZOO[name]
    pipe = entry.build()
    calls: collections.Counter[str] = collections.Counter()

    def counting(part: str) -> Callable[..., None]:
        return lambda *_: calls.update([part])

    handles = [
        part.register_forward_hook(counting(component))
        for component, part in pipe.components.items()
        if isinstance(part, nn.Module)
    ]
    inputs = {"output_type": "latent", **entry.inputs(), "num_inference_steps": 12}
    pipe(**inputs, generator=torch.Generator().manual_seed(0))
    for handle in handles:
        handle.remove()
    assert {component for component, number in calls.items() if number > 2} == {part.name for part in denoisers(pipe)}
