"""Calls of one pipeline in several threads at once: each as if it were alone, whatever the others ask for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from refusal import check_refused
from test_threads import EXACT, SCHEDULERS, call, close, pipeline, sample, trace
from torch import Tensor
from turns import Turns, elsewhere, together
from zoo import ZOO

import fastsample as fs

HELD = {
    **SCHEDULERS,
    "heun": diffusers.HeunDiscreteScheduler.from_config,
    "pndm": lambda config: diffusers.PNDMScheduler.from_config(config, skip_prk_steps=False),
}
"""Schedulers of diffusers hold their run on the object, where a step of another thread would find it."""
OTHERS = {"seed": 1, "num_inference_steps": 9, "guidance_scale": 1.0, "prompt": ["a circle", "small"]}


def at(steps: tuple[int, ...], job: Callable[[], Any]) -> Callable[..., dict[str, Any]]:
    """A callback that runs `job` in another thread after these steps."""

    def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index in steps:
            elsewhere(job)
        return tensors

    return callback


def parallel(pipe: Any, **changed: Any) -> tuple[Tensor, str]:
    """A parallel call with `sample`'s arguments, and why it was made sequentially."""
    sampler = fs.ParallelSampler(pipe, **EXACT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sampler(**call(**changed)).images, sampler.run.fallback


@pytest.mark.parametrize("scheduler", HELD)
def test_neither_of_a_plain_and_a_parallel_call_notices_the_other(scheduler: str) -> None:
    """With other guidance, prompts and steps, the one in the midst of the other."""
    pipe = pipeline()
    pipe.scheduler = HELD[scheduler](pipe.scheduler.config)
    plain, other = sample(pipe), sample(pipe, **OTHERS)
    before, held = trace(pipe), dict(vars(pipe))

    def within() -> None:
        found, fallback = parallel(pipe, **OTHERS)
        assert not fallback
        close(found, other)

    assert torch.equal(sample(pipe, callback_on_step_end=at((0, 3), within)), plain)
    assert trace(pipe) == before

    def plain_within() -> None:
        assert torch.equal(sample(pipe, **OTHERS), other)

    found, fallback = parallel(pipe, callback_on_step_end=at((0, 3), plain_within))
    assert not fallback
    close(found, plain)
    assert trace(pipe) == before
    assert vars(pipe).keys() == held.keys()


@pytest.mark.parametrize("shared", ["pipeline", "class", "scheduler", "networks"])
@pytest.mark.parametrize("order", ["nested", "crossed"])
def test_overlapping_blocks(shared: str, order: str) -> None:
    """A in, B in, then A or B out first; each calls while both are open, and while the other is closed."""
    one = pipeline("euler")
    pipes = {
        "pipeline": lambda: one,
        "class": lambda: pipeline("euler"),
        "scheduler": lambda: pipeline("euler"),
        "networks": lambda: diffusers.StableDiffusionPipeline.from_pipe(one, scheduler=copy.copy(one.scheduler)),
    }
    two = pipes[shared]()
    two.set_progress_bar_config(disable=True)
    if shared == "scheduler":
        two.scheduler = one.scheduler
    expected = [sample(one), sample(two, **OTHERS)]
    before, kinds = [trace(one), trace(two)], dict(vars(diffusers.StableDiffusionPipeline))
    turns = Turns(2)
    wait = lambda number: lambda pipe, index, timestep, tensors: turns.pass_on(number) or tensors  # noqa: E731

    def first() -> list[Tensor]:
        with fs.parallelise(one, **EXACT) as run:
            turns.pass_on(0)
            found = [sample(one, callback_on_step_end=wait(0))]
            if order == "nested":
                turns.pass_on(0)
        assert not run.fallback
        return [*found, sample(one)]

    def second() -> list[Tensor]:
        with fs.parallelise(two, **EXACT) as run:
            turns.pass_on(1)
            found = [sample(two, **OTHERS, callback_on_step_end=wait(1))]
        assert not run.fallback
        return found

    own, theirs = together(turns.take_part(0, first), turns.take_part(1, second))
    close(own[0], expected[0])
    close(theirs[0], expected[1])
    assert [trace(one), trace(two)] == before
    assert dict(vars(diffusers.StableDiffusionPipeline)) == kinds
    assert torch.equal(sample(one), expected[0])


def test_a_call_that_is_made_sequentially_is_apart_too() -> None:
    pipe = pipeline("euler")
    plain, other = sample(pipe), sample(pipe, **OTHERS)

    def nudge(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {**tensors, "latents": tensors["latents"] + 0.0}

    def within() -> None:
        found, fallback = parallel(pipe, **OTHERS, callback_on_step_end=nudge)
        assert "changes latents" in fallback
        assert torch.equal(found, other)

    assert torch.equal(sample(pipe, callback_on_step_end=at((1,), within)), plain)


def test_the_callbacks_pipeline_is_the_callers() -> None:
    """What it reads on it, and on the object that it has by itself, is of its own call; plain elsewhere."""
    pipe = pipeline("euler")
    sample(pipe)
    own = pipe.scheduler

    def look(caller: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert caller is pipe
        assert pipe.guidance_scale == 2.0
        assert pipe.num_timesteps == len(pipe.scheduler.timesteps) == 4
        assert elsewhere(lambda: (pipe.guidance_scale, pipe.scheduler is own)) == (3.0, True)
        return tensors

    _, fallback = parallel(pipe, guidance_scale=2.0, num_inference_steps=4, callback_on_step_end=look)
    assert not fallback
    assert (pipe.guidance_scale, pipe.scheduler) == (3.0, own)


@pytest.mark.parametrize("where", ["callback", "another thread"])
def test_an_interrupt_comes_through(where: str) -> None:
    """Of this call alone from its callback; from another thread of whatever runs, and once."""
    pipe = pipeline("euler")
    plain = sample(pipe)

    def stop(caller: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            set_it = lambda: setattr(pipe, "_interrupt", True)  # noqa: E731
            set_it() if where == "callback" else elsewhere(set_it)
        return tensors

    expected = sample(pipe, callback_on_step_end=stop)
    for _ in range(2):
        found, fallback = parallel(pipe, callback_on_step_end=stop)
        assert not fallback
        close(found, expected)
    assert not torch.equal(expected, plain)
    found, fallback = parallel(pipe)
    close(found, plain)


# --- callbacks that change the run -------------------------------------------------------------------------


def _guidance(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe._guidance_scale = 1.5


def _prompt(pipe: Any, tensors: dict[str, Any]) -> None:
    tensors["prompt_embeds"] = tensors["prompt_embeds"] * 0.5


def _prompt_in_place(pipe: Any, tensors: dict[str, Any]) -> None:
    tensors["prompt_embeds"].mul_(0.5)


def _levels(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe.scheduler.sigmas[-3:] *= 0.5


def _network(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe.unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


def _weights(pipe: Any, tensors: dict[str, Any]) -> None:
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(0.5)


def _adapter(pipe: Any, tensors: dict[str, Any]) -> None:
    pipe.set_ip_adapter_scale(0.0)


CHANGES = {
    "pipe._guidance_scale": _guidance,
    "prompt_embeds": _prompt,
    "prompt_embeds ": _prompt_in_place,
    "pipe.scheduler.sigmas": _levels,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("step", [1, 4])
def test_a_callback_that_changes_the_run_is_sequential(name: str, step: int) -> None:
    """Whatever it changes, on the pipeline that it is given or by itself, early or late."""

    def called(pipe: Any) -> Callable[..., dict[str, Any]]:
        def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if index == step:
                CHANGES[name](pipe, tensors)
            return tensors

        return callback

    inputs = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"], "num_inference_steps": 8}
    pipe = pipeline("euler")
    expected = sample(pipe, callback_on_step_end=called(pipe), **inputs)
    pipe = pipeline("euler")
    found, fallback = parallel(pipe, callback_on_step_end=called(pipe), **inputs)
    assert fallback == f"the callback changes {name.strip()}"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("change", [_network, _weights, _adapter])
def test_a_callback_that_changes_a_network_is_refused(change: Callable[..., None]) -> None:
    """A call made again would find it changed from its first step on."""
    pipe = ZOO["stable_diffusion_ip_adapter"].build() if change is _adapter else pipeline("euler")

    def callback(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index == 2:
            change(pipe, tensors)
        return tensors

    inputs = (
        {**ZOO["stable_diffusion_ip_adapter"].inputs(), "num_inference_steps": 6} if change is _adapter else call()
    )
    sampler = fs.ParallelSampler(pipe, **EXACT)
    check_refused(lambda: sampler(**inputs, callback_on_step_end=callback), "the callback changes pipe.unet")


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("at_step", [{"cutoff_step_index": 2}, {"cutoff_step_ratio": 0.5, "cutoff_step_index": None}])
def test_official_callbacks(several: bool, at_step: dict[str, Any]) -> None:
    pipe = pipeline("euler")
    cut = diffusers.callbacks.SDCFGCutoffCallback(**{"cutoff_step_ratio": None, **at_step})
    callback = diffusers.callbacks.MultiPipelineCallbacks([cut]) if several else cut
    expected = sample(pipe, callback_on_step_end=callback)
    found, fallback = parallel(pipe, callback_on_step_end=callback)
    assert "changes the pipeline at a step of its own" in fallback
    assert torch.equal(found, expected)
    wrapped = lambda *given: cut(*given)  # noqa: E731
    inputs = {"callback_on_step_end_tensor_inputs": cut.tensor_inputs}
    found, fallback = parallel(pipe, callback_on_step_end=wrapped, **inputs)
    assert "the callback changes" in fallback
    assert torch.equal(found, expected)


def test_the_old_callback_is_called_as_ever() -> None:
    pipe = pipeline("euler")
    seen: list[list[tuple[int, float]]] = [[], []]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample(pipe, callback=lambda step, t, latents: seen[0].append((step, float(t))), callback_steps=2)
    old = lambda step, t, latents: seen[1].append((step, float(t)))  # noqa: E731
    _, fallback = parallel(pipe, callback=old, callback_steps=2)
    assert "use callback_on_step_end" in fallback
    assert seen[0] == seen[1]


def test_what_a_callback_raises_is_raised_once() -> None:
    """It is not taken for what many rows at once have broken."""
    pipe, calls = pipeline("euler"), []

    def fail(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        calls.append(index)
        if index == 3:
            raise ValueError("enough of it")
        return tensors

    before = trace(pipe)
    check_refused(lambda: fs.ParallelSampler(pipe, **EXACT)(**call(callback_on_step_end=fail)), "enough of it")
    assert calls == [0, 1, 2, 3]
    assert trace(pipe).keys() == before.keys()
    assert trace(pipe)["kinds"] == before["kinds"]
