"""Which step a denoiser's evaluation belongs to, and which call of the pipeline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fastsample.pipelines.guidance.caller import Branches, Caller
from fastsample.pipelines.guidance.reading import Branch


@dataclass(frozen=True)
class Evaluated:
    """What a sampler that evaluates many steps at once makes of a denoiser's call: the place of each row of a
    guidance branch, or of all of them, in its list of timesteps."""

    timesteps: Sequence[Tensor]
    places: Sequence[int]


_EVALUATED: ContextVar[Evaluated | None] = ContextVar("evaluated", default=None)


@contextmanager
def evaluating(timesteps: Sequence[Tensor], places: Sequence[int]) -> Iterator[None]:
    """In the block, and in its thread, a denoiser's rows are :class:`Evaluated` at these places of `timesteps`."""
    token = _EVALUATED.set(Evaluated(timesteps, places))
    try:
        yield
    finally:
        _EVALUATED.reset(token)


AnyRun = TypeVar("AnyRun", bound="Run")


@dataclass(eq=False)
class Run:
    """One pass over a scheduler's timesteps, in one thread.

    It is known by the frame of the pipeline's `__call__` and the timesteps; in a loop of the user's own, which may
    lay out its timesteps once, by the first of them coming again.
    """

    scheduler: Any
    timesteps: Any
    frame: FrameType | None
    first: float | None  # in a loop of the user's own
    seen: dict[str, int] = field(default_factory=dict)  # evaluations of the positive branch, by group

    def is_of(self, caller: Caller, group: str, timestep: Any, branches: Branches) -> bool:
        """Whether an evaluation belongs to it."""
        if self.frame is not caller.frame or self.timesteps is not _timesteps(caller):
            return False
        count = self.seen.get(group, 0)
        if self.frame is not None or not count or branches.ahead:
            return True
        return count < len(self.timesteps) and self.first != _number(timestep)

    def step_of(self, index: int) -> int:
        """The step of a timestep; order-2 schedulers and PNDM's warm-up have several in one."""
        order = int(getattr(self.scheduler, "order", 1))
        extra = max(0, len(self.timesteps) - self.steps * order)
        return max(0, index - extra) // order

    def steps_of(self, group: str, branches: Branches) -> list[int]:
        """The step of an evaluation that is now made; where many are made at once, that of each row."""
        evaluated = _EVALUATED.get()
        if evaluated is not None:
            return [self.step_of(place) for place in evaluated.places]
        index = self.seen.get(group, 0)
        if branches.ahead:  # the step's positive branch has been counted
            index -= 1
        elif not branches.calls or branches.copies[0] is Branch.POSITIVE:
            self.seen[group] = index + 1
        return [self.step_of(index)]

    @property
    def steps(self) -> int:
        """Those that the scheduler was set to, fewer than evaluations where a step makes several."""
        steps = getattr(self.scheduler, "num_inference_steps", None)
        return int(steps) if steps else len(self.timesteps)

    @property
    def steps_left(self) -> int:
        """Those from where it begins: fewer than all in image-to-image."""
        begin = int(getattr(self.scheduler, "begin_index", None) or 0)
        return self.steps - begin // int(getattr(self.scheduler, "order", 1))


class Runs(threading.local, Generic[AnyRun]):
    """The run, of class `kind`, that a thread is in."""

    def __init__(self, kind: type[AnyRun]) -> None:
        self._kind = kind
        self.current: AnyRun | None = None

    def enter(
        self, caller: Caller, group: str, timestep: Any, branches: Branches, check: Callable[[AnyRun], None]
    ) -> AnyRun:
        """The one of this evaluation; one that has begun is passed to `check`."""
        run = self.current
        if run is None or not run.is_of(caller, group, timestep, branches):
            self.current = None
            first = _number(timestep) if caller.frame is None else None
            run = self._kind(caller.pipe.scheduler, _timesteps(caller), caller.frame, first)
            check(run)
            self.current = run
        return run


def check_scheduler(pipe: Any) -> None:
    """Raise ValueError for a pipeline of several stages whose steps no single scheduler lays out."""
    if not hasattr(pipe, "scheduler"):
        own = ", ".join(name for name in pipe.components if name.endswith("scheduler")) or "none"
        raise ValueError(f"pipe = {type(pipe).__name__} has no scheduler whose steps could be counted, but {own}")


def _timesteps(caller: Caller) -> Any:
    """Those of the pass under way; pipelines lay out new ones for each."""
    evaluated = _EVALUATED.get()
    return caller.pipe.scheduler.timesteps if evaluated is None else evaluated.timesteps


def _number(timestep: Any) -> float:
    """The first timestep of a call; on a GPU it waits for it."""
    return float(torch.as_tensor(timestep).flatten()[0]) if isinstance(timestep, (Tensor, int, float)) else 0.0
