"""Where the latents and the batch are in a denoiser's call, and the same call for many rows at once.

A batch of `items` images, perhaps in several guidance copies, becomes (copy, row, item): what the pipeline does with
the output, copy by copy, it then does to every row.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.pipelines.denoisers import MADE_EVERY_STEP, timestep_argument, unbatched
from fastsample.pipelines.parallel.conversion import TimestepConversion

Call = dict[str, Any]
"""A denoiser's arguments by name."""


class NotParallelError(Exception):
    """The pipeline cannot be sampled in parallel, and why."""


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """The arguments of a call of `module` by name."""
    bound = _signature(module).bind(*args, **kwargs)
    call = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL and call.get(parameter.name):
            raise NotParallelError(f"{type(module).__name__} is called with arguments that have no name")
        if parameter.kind is parameter.VAR_KEYWORD:
            call.update(call.pop(parameter.name, {}))
    return call


def _signature(module: nn.Module) -> inspect.Signature:
    """That of `module.forward`, without `self`; that of a class is read once."""
    forward = module.forward
    return _method_signature(forward.__func__) if inspect.ismethod(forward) else inspect.signature(forward)


@functools.lru_cache(maxsize=64)
def _method_signature(function: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(function)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclass(frozen=True)
class Place:
    """`copies` of the latents along the batch, `width` wide from `offset` along dimension `dim` (None: all of it)."""

    copies: int
    dim: int | None = None
    offset: int = 0
    width: int = 0

    @classmethod
    def find(cls, value: Any, latents: Tensor) -> Place | None:
        """Where `latents` [B, ..] lie in `value`, to the bit; None when they do not."""
        if (
            not isinstance(value, Tensor)
            or value.ndim != latents.ndim
            or value.ndim == 0
            or len(value) % len(latents)
        ):
            return None
        copies = len(value) // len(latents)
        wider = [d for d in range(1, value.ndim) if value.shape[d] != latents.shape[d]]
        if not wider:
            places = [cls(copies)]
        elif len(wider) == 1 and value.shape[wider[0]] > (width := latents.shape[wider[0]]):
            offsets = dict.fromkeys([0, value.shape[wider[0]] - width, width])
            places = [cls(copies, wider[0], o, width) for o in offsets if o + width <= value.shape[wider[0]]]
        else:
            return None
        return next((place for place in places if place.holds(value, latents)), None)

    def of(self, value: Tensor) -> Tensor:
        """The part of `value` where the latents are."""
        return value if self.dim is None else value.narrow(self.dim, self.offset, self.width)

    def around(self, value: Tensor) -> list[Tensor]:
        """What is concatenated to the latents."""
        if self.dim is None:
            return []
        end = self.offset + self.width
        sizes = [self.offset, self.width, value.shape[self.dim] - end]
        before, _, after = torch.split(value, sizes, self.dim)
        return [before, after]

    def holds(self, value: Tensor, latents: Tensor) -> bool:
        """Whether `latents` are there in `value`, in every copy."""
        if not value.ndim or len(value) % self.copies:
            return False
        part = self.of(value)
        part = part.reshape(self.copies, -1, *part.shape[1:])
        copies = latents.expand(self.copies, *latents.shape)
        return part.shape == copies.shape and torch.equal(part, copies.to(part))


@dataclass(frozen=True)
class CallLayout:
    """One of a step's calls of a denoiser, as it was when only one row was evaluated, and where its latents are."""

    module: nn.Module
    call: Call
    argument: str
    place: Place
    items: int
    timestep: str
    conversion: TimestepConversion

    @classmethod
    def learn(cls, module: nn.Module, call: Call, latents: Tensor, conversion: TimestepConversion) -> CallLayout:
        """The layout of `call`, which a pipeline made of `latents` [B, ..] as scaled for the network.

        Raises NotParallelError when they are not found in it.
        """
        timestep = timestep_argument(module) or ""
        for name, value in call.items():
            place = Place.find(value, latents)
            if place is not None:
                return cls(module, call, name, place, len(latents), timestep, conversion)
        raise NotParallelError(f"the latents are not found in the arguments of {type(module).__name__}")

    def check_timestep(self, call: Call, timestep: Tensor) -> None:
        """NotParallelError unless the call's timestep is one for the whole batch, a known function of `timestep`."""
        argument = torch.as_tensor(call.get(self.timestep))
        name = type(self.module).__name__
        if argument.ndim > 1 or argument.numel() not in (1, self.place.copies * self.items):
            raise NotParallelError(f"{name} has timesteps of shape {tuple(argument.shape)}, not one for all")
        if not self.conversion.seen(timestep.to(argument.device), argument):
            raise NotParallelError(
                f"timestep {float(argument.flatten()[0]):g} of {name} is no known function of the scheduler's "
                f"{float(timestep):g}, or not one for all"
            )

    def check_latents(self, call: Call, latents: Tensor) -> None:
        """NotParallelError unless the call has `latents` where this one had them: else something changed them."""
        value = call.get(self.argument)
        if not isinstance(value, Tensor) or not self.place.holds(value, latents):
            raise NotParallelError(
                "the latents are changed between two steps (blended with an image, or conditioned)"
            )

    def check_rest(self, call: Call) -> None:
        """NotParallelError when anything but latents and timestep changes from step to step."""
        for name in sorted({*call, *self.call} - {self.argument, self.timestep}):
            exempt = any(part in name for part in MADE_EVERY_STEP)
            if not exempt and not _same(call.get(name), self.call.get(name)):
                raise NotParallelError(f"{name} of {type(self.module).__name__} changes from step to step")
        if not _same(self.place.around(call[self.argument]), self.place.around(self.call[self.argument])):
            raise NotParallelError("what is concatenated to the latents changes from step to step")

    def expand(self, call: Call, states: Tensor, timesteps: Tensor) -> Call:
        """The call for `states` [R, B, ..], as scaled for the network, at `timesteps` [R, B] of the scheduler."""
        copies, rows = self.place.copies, len(states)
        rest = {name: value for name, value in call.items() if name not in (self.argument, self.timestep)}
        expanded = {name: self._repeat(name, value, rows) for name, value in rest.items()}
        latents = states.flatten(0, 1).repeat(copies, *[1] * (states.ndim - 2)).to(call[self.argument].dtype)
        if self.place.dim is not None:
            before, after = (self._repeat("", part, rows) for part in self.place.around(call[self.argument]))
            latents = torch.cat([before, latents, after], self.place.dim)
        expanded[self.argument] = latents
        given = torch.as_tensor(call[self.timestep])
        device = given.device if isinstance(call[self.timestep], Tensor) else latents.device
        times = self.conversion.apply(timesteps.to(device), given.dtype)
        expanded[self.timestep] = times.flatten().repeat(copies)
        return expanded

    def _repeat(self, name: str, value: Any, rows: int) -> Any:
        """`value` for every row, where its first dimension is the batch."""
        batch = self.place.copies * self.items
        if unbatched(name):
            return value
        if isinstance(value, Tensor) and value.ndim and len(value) == batch:
            split = value.reshape(self.place.copies, 1, self.items, *value.shape[1:])
            return split.expand(-1, rows, *[-1] * (split.ndim - 2)).flatten(0, 2)
        if isinstance(value, dict):
            return {key: self._repeat(key, part, rows) for key, part in value.items()}
        if isinstance(value, (list, tuple)):
            parts = list(value)
            if len(parts) == batch and not any(isinstance(part, Tensor) for part in parts):
                copies = [parts[start : start + self.items] for start in range(0, batch, self.items)]
                return type(value)(part for copy in copies for part in copy * rows)
            return type(value)(self._repeat("", part, rows) for part in parts)
        return value


def _same(one: Any, other: Any) -> bool:
    """Equal, tensors by value; those in the same memory without reading it."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)
