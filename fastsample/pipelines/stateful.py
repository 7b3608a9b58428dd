"""Schedulers that can be put back to where they were: ours by their methods, the others of diffusers adapted."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fastsample.schedules import NoiseSchedule

FIXED = ("_internal_dict",)
"""What diffusers' schedulers hold that no step changes: the config."""


@runtime_checkable
class Stateful(Protocol):
    """A scheduler whose run in this thread can be kept and gone back to."""

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of its model; ValueError where its config is not understood."""

    def state(self) -> Any:
        """What it holds of its run; going on leaves that as it is."""

    def restore(self, state: Any) -> None:
        """Go back to `state`, which stays as it is."""

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The network's input for `sample`."""


class Remaining(Protocol):
    """The steps of a scheduler's run that are left, as a table; see :mod:`fastsample.schedulers.remaining`."""

    table: Any
    begin: int
    times: tuple[float, ...]
    stored: tuple[Tensor | None, ...]
    data: list[tuple[float, float]]
    prediction: Tensor

    def noise(self, index: int) -> Tensor:
        """What the table's step `index` adds."""

    def after(self, index: int, stored: tuple[Tensor | None, ...], sample: Tensor, data: Tensor) -> Any:
        """What the scheduler holds where the table's step `index` comes next."""


def stateful(scheduler: Any) -> Stateful:
    """`scheduler`, or the adapter that gives it these methods."""
    return scheduler if isinstance(scheduler, Stateful) else Foreign(scheduler)


class Foreign:
    """A scheduler of diffusers, any class: its state is what the object holds."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        # those of flow models have none
        self._scale = getattr(scheduler, "scale_model_input", lambda sample, timestep: sample)

    @property
    def schedule(self) -> NoiseSchedule:
        """As its config has it; ValueError where that is not understood."""
        try:
            return NoiseSchedule.from_config(self._scheduler.config)
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"the config of {type(self._scheduler).__name__} is not understood: {error!r}") from None

    def state(self) -> dict[str, Any]:
        """Its attributes."""
        return {name: _copied(value) for name, value in vars(self._scheduler).items() if name not in FIXED}

    def restore(self, state: dict[str, Any]) -> None:
        """Set its attributes."""
        vars(self._scheduler).update({name: _copied(value) for name, value in state.items()})

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """By its own method; flow models' schedulers leave the sample as it is."""
        scaled: Tensor = self._scale(sample, timestep)
        return scaled


def _copied(value: Any) -> Any:
    """A copy of what a step may change in place: tensors (PNDM's sums), and containers, whose parts it replaces."""
    if isinstance(value, Tensor):
        return value.clone()
    return copy.copy(value) if isinstance(value, (list, dict, set, deque)) else value
