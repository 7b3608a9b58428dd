"""The parallel integration of a table over a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastsample.fixed_point.coarse import Strides
from fastsample.fixed_point.iterations import FixedPoint, ParallelReport, solve
from fastsample.fixed_point.linear import TableTrajectory
from fastsample.fixed_point.updates import make_update
from fastsample.sampling.backend import accumulation_dtype
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tables.table import Table

RowModel = Callable[[Tensor, Tensor], Tensor]
"""`model(x, t) -> output` for x [rows, ..] with a time t [rows] for each, float32, for float64 samples float64."""


class TableSystem(TableTrajectory):
    """The samples of `table` over `model` from `x`; `noise(index)` is what step `index` adds."""

    def __init__(self, table: Table, model: RowModel, x: Tensor, noise: Callable[[int], Tensor]) -> None:
        super().__init__(table, x, [table.steps[0].node, *(step.target for step in table.steps)], noise)
        self._model = model
        self._times = np.array([step.node.time for step in table.steps])

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """The model's outputs, of all rows in one call. Raises ValueError when their shape differs."""
        times = torch.from_numpy(self._times[rows.numpy()].ravel())
        times = times.to(accumulation_dtype(states.dtype)).to(states.device)
        flat = states.flatten(0, 1)
        outputs = self._model(flat, times)
        if outputs.shape != flat.shape:
            raise ValueError(
                f"model output has shape {tuple(outputs.shape)} for rows of shape {tuple(flat.shape)}: they must be "
                "equal, a row for each sample and time"
            )
        return outputs.reshape(states.shape)


def integrate_parallel(
    table: Table,
    model: RowModel,
    x: Tensor,
    *,
    iteration: str = "secant",
    window: int | None = None,
    tolerance: float = 0.0,
    strides: Strides = "auto",
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
    its own and does not depend on the others. Noise of stochastic tables is drawn in the order of the steps, so that
    `generator` gives what it gives to `integrate`. What is held is by the window, not the steps: about 6 samples a
    state of it, and all states where `on_sweep` is given, whose argument's `trajectory` they are.

    With `strides` the first sweeps evaluate some of the window's rows only (:class:`FixedPoint`), a third fewer in
    all where the steps are many: "auto", "none" or those of the first sweeps, as (6, 6, 3, 3, 2).

    Raises ValueError for an unknown iteration, a window below 1, a negative tolerance or a stride below 1, before any
    evaluation.
    """
    update = make_update(iteration)
    system = TableSystem(table, model, x, lambda index: draw_noise(x, generator))
    found = solve(
        system,
        update,
        window=window,
        tolerance=tolerance,
        strides=strides,
        keep=on_sweep is not None,
        on_sweep=on_sweep,
    )
    return found.leading, found.report
