"""A pipeline's callback in a loop of sweeps: called once a committed step, and held to change nothing of the run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from fastsample.pipelines.apart import INTERRUPT
from fastsample.pipelines.denoisers import Denoiser
from fastsample.pipelines.parallel.driver import Loop
from fastsample.pipelines.parallel.layout import NotParallelError


def once_a_step(
    given: Callable[..., Any], loop: Callable[[], Loop], pipe: Any, denoisers: list[Denoiser]
) -> Callable[..., dict[str, Any]]:
    """`given`, called after a sweep for each step that it committed, with that step's number, timestep and latents.

    What it changes would have had a say in steps that the sweep made: NotParallelError for anything but an interrupt,
    ValueError for networks, which a call made again would find changed from the start.
    """

    @functools.wraps(given)
    def callback(caller: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        run, before = loop(), _held(pipe, denoisers)
        steps = sorted(run.unreported)
        last: dict[str, Any] = {}
        for step in steps:
            latents = run.unreported[step]
            shown = {**tensors, "latents": latents} if "latents" in tensors else dict(tensors)
            versions = {name: value._version for name, value in shown.items() if isinstance(value, Tensor)}
            last = given(caller, step, run.timesteps[step], dict(shown)) or {}
            for name in [*shown, *(name for name in last if name not in shown)]:
                value: Any = shown.get(name)
                if last.get(name, value) is not value or (name in versions and value._version != versions[name]):
                    raise NotParallelError(f"the callback changes {name}")
            if getattr(pipe, "interrupt", False):
                if "latents" not in tensors and step != steps[-1]:
                    raise NotParallelError("the callback interrupts, and was not given the latents of the step")
                last = {**last, "latents": latents} if "latents" in tensors else last
                break
        after = _held(pipe, denoisers)
        changed = next((name for name in before | after if before.get(name) != after.get(name)), None)
        if changed in {f"pipe.{denoiser.name}" for denoiser in denoisers}:
            raise ValueError(
                f"the callback changes {changed} in the midst of a run: call the pipeline without sweeps"
            )
        if changed is not None:
            raise NotParallelError(f"the callback changes {changed}")
        run.unreported.clear()
        return last

    return callback


def _held(pipe: Any, denoisers: list[Denoiser]) -> dict[str, Any]:
    """What pipeline, scheduler and networks hold, by name, in values that are equal as long as nobody changes it."""
    held = {f"pipe.{name}": _value(value) for name, value in vars(pipe).items() if name != INTERRUPT}
    held |= {f"pipe.scheduler.{name}": _value(value) for name, value in vars(pipe.scheduler).items()}
    for denoiser in denoisers:
        parts = dict(denoiser.module.named_modules())
        weights = [_value(weight) for weight in denoiser.module.parameters()]
        knobs = [_knobs(owner) for part in parts.values() for owner in (part, getattr(part, "processor", None))]
        held[f"pipe.{denoiser.name}"] = list(parts), weights, knobs
    return held


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, Mapping):
        return {key: _value(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(part) for part in value]
    return value if isinstance(value, (int, float, str)) else id(value)


def _knobs(owner: Any) -> dict[str, Any]:
    """The numbers and words of a module or an attention processor: scales of adapters, of FreeU, .."""
    plain = (int, float, str, list, dict)
    knobs = {name: own for name, own in getattr(owner, "__dict__", {}).items() if isinstance(own, plain)}
    return {"": id(owner), **{name: _value(own) for name, own in knobs.items() if not name.startswith("_")}}
