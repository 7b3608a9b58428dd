"""The names of AUTOMATIC1111 and ComfyUI."""

from __future__ import annotations

import diffusers
import pipelines
import pytest
import torch
from refusal import check_refused

import fastsample as fs
from fastsample.names.samplers import A1111, COMFYUI, parse_sampler_name, sampler_names
from fastsample.schedules import GRIDS
from fastsample.solvers import available
from fastsample.testing import exact_model, run_scheduler

SD = pipelines.SD_CONFIG


@pytest.mark.parametrize("name", sampler_names())
def test_every_name_means_a_solver_and_a_grid(name: str) -> None:
    named = parse_sampler_name(name)
    assert named.solver in available()
    assert named.grid in GRIDS
    assert set(named.options) <= set(available()[named.solver].options)


@pytest.mark.parametrize("name", [*A1111, *COMFYUI])
def test_every_sampler_lands(name: str) -> None:
    """Names are k-diffusion's samplers: from noise onto the data that every prediction points at."""
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    schedule = fs.NoiseSchedule.from_config(SD)
    for steps in (1, 2, 3, 10):
        got = run_scheduler(fs.scheduler_from_name(name, SD), exact_model(clean, schedule), x, steps)
        torch.testing.assert_close(got, clean, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("name", "solver", "grid"),
    [
        ("DPM++ 2M SDE Karras", "dpmpp-2m-sde", "karras"),
        ("dpm++ 2m sde karras", "dpmpp-2m-sde", "karras"),
        ("DPM++ 2M", "dpmpp-2m", "karras"),
        ("dpmpp_2m", "dpmpp-2m", "normal"),
        ("dpmpp_2m_sde_gpu", "dpmpp-2m-sde", "normal"),
        ("k_euler", "euler", "normal"),
        ("dpmpp_2m sgm_uniform", "dpmpp-2m", "sgm-uniform"),
        ("DPM++ 2M SDE Heun Exponential", "dpmpp-2m-sde", "exponential"),
        ("Euler a", "euler", "normal"),
        ("UniPC", "unipc", "linspace"),
        ("DPM++ 2M Align Your Steps SDXL", "dpmpp-2m", "ays-sdxl"),
        ("DPM++ 2M Beta", "dpmpp-2m", "beta"),
        ("dpmpp_2m beta", "dpmpp-2m", "beta-time"),  # the programs lay it out in different things
    ],
)
def test_spellings(name: str, solver: str, grid: str) -> None:
    named = parse_sampler_name(name)
    assert (named.solver, named.grid) == (solver, grid)


def test_the_last_step_rules() -> None:
    """A1111 and ComfyUI leave out the sigma before the end for DPM2, and A1111 alone for DPM++ 3M SDE."""
    for name, discards in (("DPM2", True), ("dpm_2", True), ("DPM++ 3M SDE", True), ("dpmpp_3m_sde", False)):
        scheduler = fs.scheduler_from_name(name, SD)
        scheduler.set_timesteps(10)
        longer = fs.create_scheduler(scheduler.config.solver_name, SD, grid=scheduler.config.timestep_grid)
        longer.set_timesteps(11 if discards else 10)
        want = [node.sbar for node in longer._run.grid]
        want = [*want[:-2], want[-1]] if discards else want
        assert [node.sbar for node in scheduler._run.grid] == pytest.approx(want)
        assert len(scheduler._run.grid) == 11


def test_karras_2m_is_diffusers_own() -> None:
    """What diffusers documents as the equivalent of "DPM++ 2M Karras"."""
    theirs = diffusers.DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", use_karras_sigmas=True
    )
    ours = fs.scheduler_from_name("DPM++ 2M Karras", SD)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    torch.testing.assert_close(
        run_scheduler(ours, model, x, 20), run_scheduler(theirs, model, x, 20), rtol=1e-4, atol=1e-4
    )


def test_options_override_the_names() -> None:
    scheduler = fs.scheduler_from_name("DPM++ 2M SDE", SD, eta=0.5)
    assert scheduler.config.solver_options == {"eta": 0.5}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("DPM++ 2N Karras", "did you mean"),
        ("", "is unknown"),
        (None, "is unknown"),
        ("DPM adaptive", "integrate_adaptive"),
        ("Restart", "goes back to noisier steps"),
        ("LCM", "LCMScheduler"),
        ("DDIM CFG++", "changes the guidance"),
        ("Euler Align Your Steps", "Align Your Steps SD1"),
    ],
)
def test_other_names_are_one_line(name: str, words: str) -> None:
    check_refused(lambda: fs.scheduler_from_name(name, SD), words)
