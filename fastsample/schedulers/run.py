"""The state of one sampling run, one for each thread, so that pipelines in threads can share a scheduler."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fastsample.sampling.backend import Stored
from fastsample.sampling.executor import Runner
from fastsample.schedules.base import Node
from fastsample.tables.table import Table


@dataclass
class Run:
    """What `set_timesteps` lays out, and how far the steps have come."""

    timesteps: Tensor
    sigmas: Tensor
    grid: tuple[Node, ...] = ()  # the boundaries of the steps
    nodes: tuple[Node, ...] = ()  # the evaluations and the final point
    num_inference_steps: int | None = None
    table: Table | None = None
    runner: Runner | None = None
    table_start: int = 0
    before: Stored | None = None  # what the runner had stored before the last step, where it may be taken back
    step_index: int | None = None
    begin_index: int | None = None
    eta: float = 0.0  # DDIM's, an argument of its steps

    def advance(self) -> None:
        """Count a step."""
        self.step_index = (self.step_index or 0) + 1

    def go_to(self, step_index: int | None) -> None:
        """Make `step_index` the coming step; the last step is taken back, with what it carried."""
        if self.before is not None and self.step_index is not None and step_index == self.step_index - 1:
            assert self.runner is not None
            self.runner.stored, self.before = self.before, None
        self.step_index = step_index

    def restart(self) -> None:
        """Forget the steps made; the table is built again."""
        self.table, self.runner, self.before = None, None, None

    def fresh(self) -> Run:
        """The same grid, with no step made."""
        run = replace(self, table_start=0, step_index=None, begin_index=None)
        run.restart()
        return run


class RunPerThread(threading.local):
    """Holds a thread's :class:`Run` in `current`; a thread without one starts from the latest grid of any."""

    def __init__(self, shared: dict[str, Run]) -> None:
        self._shared = shared
        self.current = shared["latest"].fresh()

    def begin(self, run: Run) -> None:
        """Start `run` in this thread."""
        self.current = self._shared["latest"] = run

    def __copy__(self) -> RunPerThread:
        """This thread's run as it stands; going on with either leaves the other."""
        return _restored(replace(self.current, runner=copy.copy(self.current.runner)))

    def __deepcopy__(self, memo: dict[int, Any]) -> RunPerThread:
        return _restored(copy.deepcopy(self.current, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.current,)


def _restored(run: Run) -> RunPerThread:
    runs = RunPerThread({"latest": run})
    runs.begin(run)
    return runs
