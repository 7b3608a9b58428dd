"""The steps that a run has left, as a table: for who makes many of them at once, and then says how far they came."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, replace

from torch import Tensor

from fastsample.sampling.backend import Stored
from fastsample.sampling.noise import Generators
from fastsample.schedulers.advance import drawn
from fastsample.schedulers.run import Evaluation, Lane, Run
from fastsample.tables.table import Table


@dataclass(eq=False)
class Remaining:
    """The steps of `table` from number `begin` on; `stored` is what the steps before left in its stored slots.

    `times` are what the network is told at each of them; `data[i]` weighs the sample and the output of the table's
    step i in the clean sample that it predicts, on the caller's scale. `prediction` is that of the step before.
    """

    run: Run
    lane: Lane
    sample: Tensor
    prediction: Tensor
    generator: Generators = None

    @property
    def table(self) -> Table:
        """The table in use."""
        return self.run.table

    @property
    def begin(self) -> int:
        """The number in the table of the coming step."""
        return (self.run.step_index or 0) - self.run.start

    @property
    def times(self) -> tuple[float, ...]:
        """The timesteps of the steps."""
        assert self.run.laid.layout is not None
        return self.run.laid.layout.times[self.run.step_index :]

    @property
    def stored(self) -> Stored:
        """What the steps before left."""
        return self.lane.runner.stored

    @property
    def data(self) -> list[tuple[float, float]]:
        """The weights of the data predictions."""
        scale = self.run.laid.setup.schedule.data_scale
        return [(step.data[0] * scale, step.data[1] * scale) for step in self.table.steps]

    def noise(self, index: int) -> Tensor:
        """What the table's step `index` adds, drawn as `step` would; ask for them in the order of the steps."""
        at = replace(self.run, step_index=index + self.run.start)
        path, noise = drawn(at, self.lane, self.sample, self.generator)
        self.lane = replace(self.lane, path=path)
        return noise

    def after(self, index: int, stored: Stored, sample: Tensor, data: Tensor) -> Run:
        """The run where the table's step `index` comes next: `stored` is left, `sample` reached, `data` predicted."""
        runner = copy.copy(self.lane.runner)
        runner.stored = stored
        lane = replace(self.lane, runner=runner, made=weakref.ref(sample))
        run = replace(self.run, step_index=index + self.run.start, lanes=(lane,), previous=(), source=None)
        return replace(run, last=Evaluation.of((0.0, 0.0), sample, sample, data))
