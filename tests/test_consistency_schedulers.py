"""LCM, TCD and FlowMatchLCM: ours against diffusers' classes, step by step and in a pipeline, with the same noise."""

from __future__ import annotations

from typing import Any

import diffusers
import pipelines
import pytest
import torch
from refusal import check_refused

import fastsample as fs
from fastsample.testing import run_scheduler

FLOW_LCM = diffusers.FlowMatchLCMScheduler


def model(x: torch.Tensor, t: Any) -> torch.Tensor:
    """A smooth made-up network."""
    return 0.9 * torch.tanh(x) + 0.1 * torch.sin(torch.as_tensor(t, dtype=torch.float32) / 100)


def run(scheduler: Any, steps: int | None, grid: dict[str, Any], **options: Any) -> list[torch.Tensor]:
    """All samples of a run, its noise from one seed."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(steps, **grid)
    samples = []
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, generator=generator, return_dict=False, **options)[0]
        samples.append(x)
    return samples


def assert_alike(ours: Any, theirs: Any, steps: int | None, grid: dict[str, Any], **options: Any) -> None:
    got, want = run(ours, steps, grid, **options), run(theirs, steps, grid, **options)
    torch.testing.assert_close(ours.timesteps.float(), theirs.timesteps.float(), rtol=1e-6, atol=1e-4)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"timestep_scaling": 0.02},  # where the sample weighs something
        {"original_inference_steps": 100},
    ],
)
def test_lcm_is_diffusers(config: dict[str, Any], steps: int) -> None:
    theirs = diffusers.LCMScheduler(**config)
    assert_alike(fs.LCMScheduler(**config), theirs, steps, {})
    assert_alike(fs.LCMScheduler.from_config(theirs.config), theirs, steps, {})


@pytest.mark.parametrize(
    "grid", [{"original_inference_steps": 25}, {"strength": 0.6}, {"original_inference_steps": 100, "strength": 0.5}]
)
@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_grids_of_distillation_are_diffusers(name: str, grid: dict[str, Any]) -> None:
    assert_alike(getattr(fs, name)(), getattr(diffusers, name)(), 4, grid)


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_explicit_timesteps_are_diffusers(name: str) -> None:
    assert_alike(getattr(fs, name)(), getattr(diffusers, name)(), None, {"timesteps": [999, 759, 499, 259]})


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_tcd_is_diffusers(prediction_type: str, steps: int, eta: float) -> None:
    theirs = diffusers.TCDScheduler(prediction_type=prediction_type)
    assert_alike(fs.TCDScheduler.from_config(theirs.config), theirs, steps, {}, eta=eta)


@pytest.mark.parametrize("steps", [1, 4, 8])
@pytest.mark.parametrize("config", [{}, {"shift": 3.0}, {"shift": 3.0, "use_karras_sigmas": True}])
def test_flow_lcm_is_diffusers(config: dict[str, Any], steps: int) -> None:
    theirs = FLOW_LCM(**config)
    ours = fs.LCMScheduler.from_config(theirs.config)
    assert_alike(ours, theirs, steps, {})
    dynamic = FLOW_LCM(use_dynamic_shifting=True)
    sigmas = torch.linspace(1, 1 / steps, steps).tolist()
    assert_alike(fs.LCMScheduler.from_config(dynamic.config), dynamic, None, {"sigmas": sigmas, "mu": 0.9})


@pytest.mark.parametrize("name", ["LCMScheduler", "TCDScheduler"])
def test_in_a_pipeline(name: str) -> None:
    images = []
    for scheduler in (getattr(diffusers, name)(), getattr(fs, name)()):
        pipe = pipelines.stable_diffusion()
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        eta = {"eta": 0.3} if name == "TCDScheduler" else {}
        made = pipe("a red circle", num_inference_steps=4, generator=generator, output_type="latent", **eta)
        images.append(made.images)
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)


def test_saved_and_loaded(tmp_path: Any) -> None:
    for scheduler in (fs.LCMScheduler(original_inference_steps=40), fs.TCDScheduler(eta=0.5)):
        scheduler.save_pretrained(tmp_path)
        again = type(scheduler).from_pretrained(tmp_path)
        for one, other in zip(run(scheduler, 4, {}), run(again, 4, {}), strict=True):
            assert torch.equal(one, other)


def test_the_second_of_a_tuple_is_the_denoised_sample() -> None:
    theirs, ours = diffusers.LCMScheduler(), fs.LCMScheduler()
    x = torch.randn(1, 4, 8, 8)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(4)
    t = theirs.timesteps[0]
    want, got = (scheduler.step(model(x, t), t, x, return_dict=False)[1] for scheduler in (theirs, ours))
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("config", [diffusers.LCMScheduler().config, FLOW_LCM().config])
def test_other_solvers_refuse_these_models_and_these_solvers_do_not(config: Any) -> None:
    for make in (fs.DPMSolverScheduler.from_config, lambda config: fs.create_scheduler("dpmpp-2m", config)):
        check_refused(lambda make=make: make(config), "is a consistency model")
    scheduler = fs.create_scheduler("lcm", config)
    x = run_scheduler(scheduler, model, torch.randn(1, 4, 8, 8), 4)
    assert torch.isfinite(x).all()
    assert fs.scheduler_from_name("lcm sgm_uniform", config).config.solver_name == "lcm"


def test_wrong_input_is_one_line() -> None:
    scheduler, flow = fs.LCMScheduler(), fs.LCMScheduler.from_config(FLOW_LCM().config)
    check_refused(lambda: scheduler.set_timesteps(51), "was distilled at 50 of 1000 times")
    check_refused(lambda: scheduler.set_timesteps(31, strength=0.6), "30 of them are used")
    check_refused(lambda: scheduler.set_timesteps(4, original_inference_steps=2000), "was distilled at 2000 of 1000")
    check_refused(scheduler.set_timesteps, "num_inference_steps = 0")
    check_refused(
        lambda: flow.set_timesteps(4, original_inference_steps=50), "use LCMScheduler or TCDScheduler on a VP"
    )
    check_refused(lambda: flow.set_timesteps(4, strength=0.5), "strength = 0.5")
    scaled = FLOW_LCM(scale_factors=[0.5, 1.0]).config
    check_refused(lambda: fs.LCMScheduler.from_config(scaled), "samples are not resized here")
