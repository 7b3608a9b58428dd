"""A pipeline's callback in a loop of sweeps: called once a committed step, and held to change nothing of the run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from fastsample.pipelines.apart import INTERRUPT
from fastsample.pipelines.denoisers import Denoiser
from fastsample.pipelines.parallel.driver import Loop
from fastsample.pipelines.parallel.layout import NotParallelError

PLAIN = frozenset({bool, int, float, str})


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
    return held | {f"pipe.{denoiser.name}": _network(denoiser.module) for denoiser in denoisers}


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, Mapping):
        return {key: _value(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(part) for part in value]
    return value if isinstance(value, (int, float, str)) else id(value)


def _network(module: nn.Module) -> tuple[list[Any], ...]:
    """Which modules and weights it has, and all numbers and words on modules and attention processors.

    These are scales of adapters, of FreeU, ..; not layers, which other threads put on it.
    """
    parts = list(module.modules())
    weights = [weight for part in parts for weight in part._parameters.values() if weight is not None]
    owners = [vars(part) for part in parts]
    owners += [vars(own) for own in (held.get("processor") for held in owners) if hasattr(own, "__dict__")]
    knobs = [
        value if type(value) in PLAIN else _value(value)
        for held in owners
        for name, value in held.items()
        if type(value) in PLAIN or (type(value) in (list, dict) and not name.startswith("_"))
    ]
    return [id(part) for part in parts], [(id(weight), weight._version) for weight in weights], knobs
