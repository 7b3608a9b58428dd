"""Two calls of one object with other arguments: the second gives what a fresh object gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from pipelines import quiet, stable_diffusion
from torch import Tensor
from zoo import ZOO

import fastsample as fs
from fastsample.pipelines.configured import configured

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ours": fs.DPMSolverScheduler.from_config,
    "ours sde": lambda config: fs.DPMSolverScheduler.from_config(config, algorithm_type="sde-dpmsolver++"),
    "ours heun": lambda config: fs.create_scheduler("heun", config),
    "ours ghvb": fs.GHVBScheduler.from_config,
    "unipc": diffusers.UniPCMultistepScheduler.from_config,
    "ancestral": diffusers.EulerAncestralDiscreteScheduler.from_config,
    "pndm": lambda config: diffusers.PNDMScheduler.from_config(config, skip_prk_steps=True),
}
CALLS: dict[str, dict[str, Any]] = {
    "first": {"prompt": "a small red circle", "num_inference_steps": 6, "guidance_scale": 3.0, "width": 16},
    "steps": {"num_inference_steps": 4},
    "guidance": {"guidance_scale": 7.0},
    "unguided": {"guidance_scale": 1.0},
    "batch": {"prompt": ["a circle", "red", "small"]},
    "images": {"num_images_per_prompt": 2},
    "size": {"height": 32, "width": 24},
    "prompt": {"prompt": "red", "negative_prompt": "a circle"},
    "all": {"prompt": ["a", "red"], "num_inference_steps": 9, "guidance_scale": 1.0, "height": 32, "width": 8},
}


def pipeline(scheduler: str = "ours") -> Any:
    pipe = quiet(stable_diffusion())
    pipe.scheduler = SCHEDULERS[scheduler](pipe.scheduler.config)
    return pipe


def sample(pipe: Any, call: str) -> Tensor:
    arguments = {**CALLS["first"], "height": 16, "output_type": "latent", **CALLS[call]}
    return pipe(**arguments, generator=torch.Generator().manual_seed(0)).images


@functools.cache
def fresh_sample(scheduler: str, call: str) -> Tensor:
    """What a new pipeline gives that is called for the first time."""
    return sample(pipeline(scheduler), call)


@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name.startswith("ours")])
def test_a_pipeline_is_called_again(scheduler: str) -> None:
    """And again, the other way round."""
    pipe = pipeline(scheduler)
    for call in [*CALLS, *reversed(CALLS)]:
        assert torch.equal(sample(pipe, call), fresh_sample(scheduler, call)), call


@pytest.mark.parametrize(
    ("scheduler", "iteration"),
    [
        ("ours", "secant"),
        ("ours sde", "picard"),
        ("ours heun", "replay"),
        ("unipc", "anderson"),
    ],
)
def test_a_parallel_sampler_is_called_again(scheduler: str, iteration: str) -> None:
    """The same image, rounds and steps, by the object and by calls of one block."""
    options = {"iteration": iteration, "window": 4, "tolerance": 0.02}
    fresh, costs = {}, {}
    for call in CALLS:
        sampler = fs.ParallelSampler(pipeline(scheduler), **options)
        fresh[call] = sample(sampler, call)
        costs[call] = (sampler.run.rounds, sampler.run.steps)
        assert not sampler.run.fallback
    pipe = pipeline(scheduler)
    sampler = fs.ParallelSampler(pipe, **options)
    for call in ["all", *CALLS]:
        assert torch.equal(sample(sampler, call), fresh[call]), call
        assert (sampler.run.rounds, sampler.run.steps) == costs[call]
    with fs.parallelise(pipe, **options) as run:
        for call in ("first", "size", "unguided"):
            assert torch.equal(sample(pipe, call), fresh[call]), call
    assert run.steps == sum(costs[call][1] for call in ("first", "size", "unguided"))


@pytest.mark.parametrize(
    ("scheduler", "plan"), [("ours", (3, 1, 1, 0)), ("ours heun", (4, 2, 3, 1)), ("pndm", (1, 1, 1, 0))]
)
def test_a_gated_pipeline_is_called_again(scheduler: str, plan: tuple[int, ...]) -> None:
    """Guided and not, in other batches and sizes, the gate at its step of each."""
    pipe = pipeline(scheduler)
    guided = [call for call in CALLS if CALLS[call].get("guidance_scale") != 1.0]
    for drop, calls in ((True, guided), (False, list(CALLS))):
        tgate = fs.TGate(*plan, drop_guidance=drop)
        fresh, counts = {}, {}
        for call in calls:
            new = pipeline(scheduler)
            with tgate.apply(new) as handle:
                fresh[call] = sample(new, call)
                counts[call] = handle.summary()
        with tgate.apply(pipe) as handle:
            for call in [*calls, "first"]:
                handle.reset()
                assert torch.equal(sample(pipe, call), fresh[call]), call
                assert (handle.summary().evaluations, handle.summary().dropped, handle.summary().cross_reused) == (
                    counts[call].evaluations,
                    counts[call].dropped,
                    counts[call].cross_reused,
                )


@pytest.mark.parametrize("name", ["wan", "stable_diffusion_xl", "pixart_alpha", "flux"])
def test_samplers_of_other_pipelines_are_called_again(name: str) -> None:
    """More steps, then fewer, with the scheduler that they came with."""
    entry = ZOO[name]

    def run(sampler: Any, steps: int) -> Tensor:
        inputs = {"output_type": "latent", **entry.inputs(), "num_inference_steps": steps}
        return torch.as_tensor(sampler(**inputs, generator=torch.Generator().manual_seed(0))[0])

    options = {"window": 3, "tolerance": 0.0}
    fresh = {steps: run(fs.ParallelSampler(entry.build(), **options), steps) for steps in (3, 7)}
    sampler = fs.ParallelSampler(entry.build(), **options)
    for steps in (7, 3, 7):
        assert torch.equal(run(sampler, steps), fresh[steps])
        assert not sampler.run.fallback


def test_setups_follow_one_another() -> None:
    """Each block with a scheduler of its own, and then the pipeline's own: as on fresh pipelines."""
    pipe = pipeline()
    for name in [*SCHEDULERS, *reversed(SCHEDULERS)]:
        with configured(pipe, SCHEDULERS[name](pipe.scheduler.config)):
            assert torch.equal(sample(pipe, "steps"), fresh_sample(name, "steps")), name
        assert torch.equal(sample(pipe, "first"), fresh_sample("ours", "first"))
