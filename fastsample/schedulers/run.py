"""The state of one sampling run: values that are never changed, only replaced, one for each thread.

So a copy of a scheduler, or of its `__dict__`, however shallow, goes on by itself, and a snapshot costs nothing.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from fastsample.sampling.brownian import BrownianPath
from fastsample.sampling.executor import Runner
from fastsample.schedulers.layout import Laid
from fastsample.schedules.base import Node
from fastsample.tables.table import Table


@dataclass(slots=True, eq=False)
class Lane:
    """What one trajectory carries: the runner with its values, and the sample that its step returned.

    `shape` is that of the values; () before the first step. `path` is what its noise follows, once any was drawn.
    """

    runner: Runner
    shape: tuple[int, ...] = ()
    made: weakref.ref[Tensor] | None = None
    path: BrownianPath | None = None

    def returned(self, sample: Tensor | None) -> bool:
        """Whether `sample` is the very tensor that this trajectory's last step returned."""
        return self.made is not None and sample is not None and self.made() is sample

    def __reduce__(self) -> tuple[Any, ...]:
        return Lane, (self.runner, self.shape, None, self.path)  # a tensor elsewhere is not the one returned


class Evaluation(NamedTuple):
    """The last evaluation of a run: it predicts `data`, where that has been made, else `weights` of the other two."""

    weights: tuple[float, float]
    sample: Tensor
    output: Tensor
    data: Tensor | None

    @classmethod
    def of(cls, weights: tuple[float, float], sample: Tensor, output: Tensor, data: Tensor | None) -> Evaluation:
        """Without the graph that gradients go back through, which would live until the next step."""
        return cls(weights, _plain(sample), _plain(output), None if data is None else _plain(data))


def _plain(value: Tensor) -> Tensor:
    return value.detach() if value.requires_grad else value  # a view costs a microsecond


@dataclass(slots=True, eq=False)
class Run:
    """What `set_timesteps` laid out, and how far the steps have come. Never changed once made.

    `lanes` are the trajectories that have reached `step_index`: one, unless the step before it was made several
    times; `previous` are those that had reached the step before, `source` is the one stepped from last, and `beside`
    are those that have gone on from `step_index` already, where it is stepped from again.
    """

    laid: Laid
    step_index: int | None = None
    begin_index: int | None = None
    start: int = 0  # the evaluation at which the table in use begins
    eta: float = 0.0  # of that table: 0 is the solver's own
    lanes: tuple[Lane, ...] = ()
    previous: tuple[Lane, ...] = ()
    beside: tuple[Lane, ...] = ()
    source: Lane | None = None
    last: Evaluation | None = None
    rows: Any = None  # the history of steps whose rows or tokens each have a time of their own

    @property
    def coming(self) -> int | None:
        """The index of the coming step, where it is known before its timestep is."""
        return self.begin_index if self.step_index is None else self.step_index

    @property
    def grid(self) -> tuple[Node, ...]:
        """The boundaries of the steps."""
        return self.laid.layout.grid if self.laid.layout else ()

    @property
    def table(self) -> Table:
        """The table in use."""
        return self.laid.compiled(self.start, self.eta).table

    def at(self, index: int | None, eta: float = 0.0) -> Run:
        """With `index` as the coming step, and nothing carried there."""
        return Run(self.laid, index, self.begin_index, index or 0, eta)

    def back_to(self, index: int | None) -> Run:
        """With `index` as the coming step; where that takes the last step back, with what was carried before it."""
        if index == self.step_index:
            return self
        if self.source is not None and self.step_index is not None and index == self.step_index - 1:
            return replace(self, step_index=index, lanes=(self.source,), previous=(), source=None)
        return self.at(index)

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self


class Shelf(threading.local):
    """One scheduler's runs, each thread's own where it alone finds it."""

    def __init__(self) -> None:
        self.owner = object()
        self.run: Run | None = None


class Held:
    """The run as an attribute of a scheduler, with the thread that it belongs to.

    A thread finds its own run here, or on the shelf where another thread has used the scheduler since; a thread
    that has none starts on the grid laid out last. A deep copy, as of a scheduler's `__dict__`, holds the run of the
    thread that makes it; :meth:`apart` is for another scheduler.
    """

    __slots__ = ("_owner", "_run", "_shelf")

    def __init__(self, run: Run, shelf: Shelf | None = None) -> None:
        self._run, self._shelf = run, Shelf() if shelf is None else shelf
        self._owner = self._shelf.owner
        self._shelf.run = run

    @property
    def run(self) -> Run:
        """This thread's run."""
        shelf = self._shelf
        if self._owner is shelf.owner:
            return self._run
        return Run(self._run.laid) if shelf.run is None else shelf.run

    def then(self, run: Run) -> Held:
        """What a scheduler holds when this thread's run has become `run`."""
        return Held(run, self._shelf)

    def apart(self) -> Held:
        """This thread's run for another scheduler."""
        return Held(self.run)

    def __deepcopy__(self, memo: dict[int, Any]) -> Held:
        kept = Held.__new__(Held)
        kept._run, kept._shelf, kept._owner = self.run, self._shelf, self._shelf.owner
        return kept

    def __reduce__(self) -> tuple[Any, ...]:
        return Held, (self.run,)
