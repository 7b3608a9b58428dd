"""The parallel integration of a table over a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastsample.fixed_point.iterations import FixedPoint, ParallelReport, solve
from fastsample.fixed_point.trajectory import Trajectory
from fastsample.fixed_point.updates import make_update
from fastsample.sampling.backend import Stored, accumulation_dtype
from fastsample.sampling.executor import run_step
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tables.table import Table

RowModel = Callable[[Tensor, Tensor], Tensor]
"""`model(x, t) -> output` for x [rows, ..] with a time t [rows] for each, float32, for float64 samples float64."""


class TableSystem(Trajectory):
    """The samples of `table` over `model` from `x`; `noises[i]` is what step i adds where it is stochastic."""

    def __init__(self, table: Table, model: RowModel, x: Tensor, noises: Sequence[Tensor | None]) -> None:
        super().__init__(x, [table.steps[0].node, *(step.target for step in table.steps)])
        self._model, self._noises = model, noises
        self._lowered = table.lowered.steps
        self._times = torch.tensor([step.node.time for step in table.steps], dtype=torch.float64)
        self._rows = [step.next for step in table.steps]
        # what is stored before each step, as it was made last
        self._stored: dict[int, Stored] = {0: table.lowered.empty}

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """The model's outputs, of all rows in one call. Raises ValueError when their shape differs."""
        times = self._times[rows].flatten().to(accumulation_dtype(states.dtype)).to(states.device)
        flat = states.flatten(0, 1)
        outputs = self._model(flat, times)
        if outputs.shape != flat.shape:
            raise ValueError(
                f"model output has shape {tuple(outputs.shape)} for rows of shape {tuple(flat.shape)}: they must be "
                "equal, a row for each sample and time"
            )
        return outputs.reshape(states.shape)

    def step(self, index: int, sample: Tensor, output: Tensor) -> Tensor:
        """The next sample by the table's row."""
        new, self._stored[index + 1] = run_step(
            self._lowered[index], sample, output, self._stored[index], self._noises[index]
        )
        return new

    def gain(self, index: int) -> tuple[float, float]:
        """As the table has them."""
        return self._rows[index].sample, self._rows[index].output

    def commit(self, begin: Tensor) -> None:
        """Drops the history that no coming step reads."""
        for index in range(min(self._stored), int(begin.min())):
            del self._stored[index]


def integrate_parallel(
    table: Table,
    model: RowModel,
    x: Tensor,
    *,
    iteration: str = "secant",
    window: int | None = None,
    tolerance: float = 0.0,
    generator: Generators = None,
    on_sweep: Callable[[FixedPoint], None] | None = None,
) -> tuple[Tensor, ParallelReport]:
    """Run `table` over `model` from `x` by parallel sweeps: the sample at the table's last time, and a report.

    `x` [B, ..] is the sample at the table's first time. `model(x, t)` gets the samples of a whole window flattened
    to [rows * B, ..], all items of a row together, and times t [rows * B], float32 or as wide as x; conditions repeat
    as `condition.repeat(rows, ..)`. `iteration` is "picard" (ParaDiGMS, arXiv:2305.16317), "replay", "secant" or
    "anderson" (ParaTAA, arXiv:2402.09970); `window` the evaluations made at once (None: all of them). At tolerance 0
    the result equals :func:`fastsample.integrate` to rounding; else a sample is committed once the earlier ones
    moved, RMS, by no more than `tolerance` times the noise that a DDPM step adds there. Each image has a window of
    its own and does not depend on the others. Noise of stochastic tables is drawn beforehand, in the order of the
    steps, so that `generator` gives what it gives to `integrate`.

    Raises ValueError for an unknown iteration, a window below 1 or a negative tolerance, before any evaluation.
    """
    update = make_update(iteration)
    noises = [draw_noise(x, generator) if step.next.noise else None for step in table.steps]
    system = TableSystem(table, model, x, noises)
    states, report = solve(system, update, window=window, tolerance=tolerance, on_sweep=on_sweep)
    return states[-1], report
