"""Pipelines with schedulers of tables: their sweeps in closed form are those of the schedulers' own steps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from live import Live
from pipelines import SD_CONFIG, stable_diffusion
from torch import Tensor

import fastsample as fs
from fastsample.fixed_point import integrate_parallel
from fastsample.pipelines.parallel.stepping import Stepper


class EnoughError(Exception):
    pass


class TanhUNet(diffusers.UNet2DConditionModel):
    """A network of one operation, which ends the call after so many rounds."""

    rounds = 10**6

    def forward(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        self.rounds -= 1
        if self.rounds < 0:
            raise EnoughError
        return (torch.tanh(sample),)


@pytest.fixture(scope="module")
def sd() -> Any:
    return stable_diffusion()


def inputs(batch: int = 1, **changed: Any) -> dict[str, Any]:
    base = {"prompt": ["a small red circle"] * batch, "height": 8, "width": 8, "guidance_scale": 3.0}
    base |= {"num_inference_steps": 14, "output_type": "latent"}
    return {**base, "generator": [torch.Generator().manual_seed(seed) for seed in range(batch)], **changed}


CONFIG = diffusers.DDIMScheduler(**SD_CONFIG).config
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ddim": fs.DDIMScheduler.from_config,
    "eta": fs.DDIMScheduler.from_config,
    "dpm": fs.DPMSolverScheduler.from_config,
    "sde": lambda config: fs.DPMSolverScheduler.from_config(config, algorithm_type="sde-dpmsolver++"),
    "brownian": lambda config: fs.DPMSolverScheduler.from_config(
        config, algorithm_type="sde-dpmsolver++", noise="brownian"
    ),
    "unipc": fs.UniPCScheduler.from_config,
    "heavy ball": lambda config: fs.create_scheduler("hb-dpmpp-2m", config),
    "heun": lambda config: fs.create_scheduler("heun", config),
    "dualfast": lambda config: fs.create_scheduler("dpmpp-2m", config, dualfast=0.4),
    "tcd": fs.TCDScheduler.from_config,
}


def both(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, call: dict[str, Any], **options: Any
) -> list[tuple[Tensor, fs.ParallelSampler]]:
    """By the table, and by the scheduler's own steps."""
    found = []
    own = Stepper.remaining
    for remaining in (own, lambda *_: None):
        monkeypatch.setattr(Stepper, "remaining", remaining)
        sampler = fs.ParallelSampler(pipe, **options)
        fresh = {**call, "generator": [torch.Generator().manual_seed(seed) for seed in range(3)]}
        found.append((sampler(**fresh).images, sampler))
    monkeypatch.setattr(Stepper, "remaining", own)
    return found


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_table_is_its_schedulers_steps(sd: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rounds and the same images, at a tolerance, whatever the windows of three images do."""
    sd.scheduler = SCHEDULERS[kind](CONFIG)
    call = inputs(3, eta=0.7) if kind == "eta" else inputs(3)
    (found, table), (expected, steps) = both(sd, monkeypatch, call, window=5, tolerance=0.02)
    assert not table.run.fallback
    assert [report.starts for report in table.run.reports] == [report.starts for report in steps.run.reports]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_step_of_its_own_is_made_by_itself(sd: Any) -> None:
    """A scheduler whose `step` is not the table's, by subclass or by clipping, keeps its steps."""

    class Halved(fs.DDIMScheduler):
        def step(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().step(0.5 * model_output, *args, **kwargs)

    for scheduler in (
        Halved.from_config(CONFIG),
        fs.DDIMScheduler.from_config(CONFIG, thresholding=True),
        fs.LCMScheduler.from_config(CONFIG),
    ):
        sd.scheduler = scheduler
        expected = sd(**inputs(num_inference_steps=6)).images
        sampler = fs.ParallelSampler(sd, tolerance=0.0)
        torch.testing.assert_close(sampler(**inputs(num_inference_steps=6)).images, expected, rtol=1e-4, atol=1e-4)
        assert not sampler.run.fallback


def test_callbacks_see_each_steps_data_prediction(sd: Any) -> None:
    """What the scheduler says of the last committed step, as previews draw it."""
    sd.scheduler = fs.DPMSolverScheduler.from_config(CONFIG)

    def recorded(sampler: Any) -> dict[int, Tensor]:
        seen: dict[int, Tensor] = {}

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            seen[step] = pipe.scheduler.pred_original_sample.clone()
            return tensors

        sampler(**inputs(2), callback_on_step_end=callback)
        return seen

    sampler = fs.ParallelSampler(sd, window=1, tolerance=0.0)
    found, expected = recorded(sampler), recorded(sd)
    assert not sampler.run.fallback
    for step, data in expected.items():
        torch.testing.assert_close(found[step], data, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", ["autocast", "tf32"])
def test_sweeps_are_exact_where_other_products_are_not(setting: str) -> None:
    """Autocast and reduced float32 products are the network's business."""
    schedule = fs.NoiseSchedule.linear_vp()
    table = fs.build_table("dpmpp-2m", schedule, fs.time_grid("trailing", schedule, 10))
    x = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(0))
    expected = fs.integrate(table, lambda x, t: torch.tanh(x), x)
    before = torch.get_float32_matmul_precision()
    try:
        if setting == "tf32":
            torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            found, _ = integrate_parallel(table, lambda x, t: torch.tanh(x), x)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def observed(steps: int, *, kind: str = "dpm", rounds: int = 10**6, iteration: str = "secant") -> Live:
    """What the rounds of a call do to tensors, the network's one operation among it, in a window of 16."""
    pipe, live = stable_diffusion(), Live()
    pipe.unet = TanhUNet.from_config(pipe.unet.config)
    pipe.unet.rounds = rounds
    pipe.scheduler = SCHEDULERS[kind](CONFIG)
    sampler = fs.ParallelSampler(pipe, iteration=iteration, window=16, tolerance=1e-3)
    call = inputs(num_inference_steps=steps, height=64, width=64, guidance_scale=1.0)
    with live, contextlib.suppress(EnoughError):
        sampler(**call)
    assert not sampler.run.fallback
    return live


@pytest.mark.parametrize(("iteration", "latents"), [("picard", 5.2), ("secant", 6), ("anderson", 9.5)])
def test_memory_is_by_the_window(iteration: str, latents: float) -> None:
    """The peak of a whole call in latents a state of the window, the network's output and all single latents too."""
    for steps in (50, 200, 1000):
        assert observed(steps, iteration=iteration).peak < latents * 16 * 4 * 4 * 32 * 32


@pytest.mark.parametrize(("kind", "most"), [("ddim", 25), ("dpm", 25), ("unipc", 25), ("sde", 40)])
def test_a_round_is_a_few_operations(kind: str, most: int) -> None:
    """With the network's one, the checks of its call and rows: at most 20 are the sweep's, and two a draw."""
    more, few = (observed(60, kind=kind, rounds=rounds).operations for rounds in (9, 7))
    assert (more - few) / 2 <= most
