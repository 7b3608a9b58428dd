"""A table over a model as a triangular system, and its parallel integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.parallel.iterations import FixedPoint, ParallelReport, solve
from fastsample.parallel.updates import make_update
from fastsample.sampling.executor import Values, run_step
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.sampling.program import compile_program
from fastsample.schedules.base import Node
from fastsample.tables.table import Table

RowModel = Callable[[Tensor, Tensor], Tensor]
"""`model(x, t) -> output` for x [rows, ..] with a time t [rows], float64, for each."""


class TableSystem:
    """The samples of `table` over `model` from `x`, [B, ..]: row i is evaluation i, state i the sample it is made at.

    `noises[i]` is what step i adds where it is stochastic. A change is the RMS over a sample's elements relative to
    the noise that a DDPM step would add there (:func:`noise_scales`).
    """

    def __init__(self, table: Table, model: RowModel, x: Tensor, noises: Sequence[Tensor | None]) -> None:
        self._model, self._x, self._noises = model, x, noises
        self._instructions = compile_program(table).steps
        self._times = torch.tensor([step.node.time for step in table.steps], dtype=torch.float64)
        self._scales = noise_scales([(step.node, step.target) for step in table.steps])
        nodes = [table.steps[0].node, *(step.target for step in table.steps)]
        self._spreads = torch.tensor([math.hypot(node.alpha, node.sigma) for node in nodes], dtype=torch.float64)
        shape = (table.nfe, *x.shape)
        self._samples, self._outputs = torch.zeros(shape).to(x), torch.zeros(shape).to(x)
        self._items = torch.arange(len(x), device=x.device)
        self._values: Values = {}
        self._dropped = 0  # steps whose dead values are gone

    @property
    def length(self) -> int:
        """The table's evaluations."""
        return len(self._instructions)

    def initial(self) -> Tensor:
        """The sample at the first time, [1, B, ..]."""
        return self._x[None]

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """The same direction at the coming noise level's spread `sqrt(alpha^2 + sigma^2)`; on VP models a copy."""
        return states * _like(self._spreads[rows] / self._spreads[reached], states)

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """The model's outputs, of all rows in one call. Raises ValueError when their shape differs."""
        times = self._times[rows].flatten().to(states.device)
        flat = states.flatten(0, 1)
        outputs = self._model(flat, times)
        if outputs.shape != flat.shape:
            raise ValueError(
                f"model output has shape {tuple(outputs.shape)} for rows of shape {tuple(flat.shape)}: they must be "
                "equal, a row for each sample and time"
            )
        return outputs.reshape(states.shape)

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        """The next samples, each of its own sample and output; entries of earlier steps are of theirs."""
        self._samples[rows.to(states.device), self._items] = states
        return self._steps(rows, outputs, replayed=False)

    def replay(self, rows: Tensor, state: Tensor, outputs: Tensor) -> Tensor:
        """The next samples by running the table from the first row's sample with `outputs`."""
        self._samples[rows[0].to(state.device), self._items] = state
        return self._steps(rows, outputs, replayed=True)

    def change(self, rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """RMS of the difference over the step's noise scale, [R, B]."""
        difference = (new - old).flatten(2)
        return difference.square().mean(-1).sqrt().cpu() / self._scales[rows]

    def commit(self, begin: Tensor) -> None:
        """Drops the history that no coming step reads."""
        first = int(begin.min())
        for instructions in self._instructions[self._dropped : first]:
            for name in instructions.frees:
                self._values.pop(name, None)
        self._dropped = first

    def _steps(self, rows: Tensor, outputs: Tensor, *, replayed: bool) -> Tensor:
        """Runs steps from the first row of any item to the last; items that are past a step run it as they did."""
        index = rows.to(outputs.device)
        self._outputs[index, self._items] = outputs.to(self._outputs)
        made: dict[int, Tensor] = {}
        first, last = int(rows.min()), int(rows.max())
        for step in range(first, last + 1):
            if replayed and step > first:
                inside = (step > index[0]).reshape(-1, *[1] * (outputs.ndim - 2))
                self._samples[step] = torch.where(inside, made[step - 1], self._samples[step])
            made[step] = self._step(step)
        return torch.stack([made[step] for step in range(first, last + 1)])[index - first, self._items]

    def _step(self, step: int) -> Tensor:
        instructions = self._instructions[step]
        kept = {name: self._values[name] for name in instructions.frees if name in self._values}
        new = run_step(instructions, self._samples[step], self._outputs[step], self._values, self._noises[step])
        self._values |= kept  # a later sweep reads them again
        return new


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
    to [rows * B, ..], all items of a row together, and float64 times t [rows * B]; conditions repeat as
    `condition.repeat(rows, ..)`. `iteration` is "picard" (ParaDiGMS, arXiv:2305.16317), "replay", "secant" or
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


def noise_scales(steps: Sequence[tuple[Node, Node]]) -> Tensor:
    """The noise std of a DDPM step to each state, `sigma_t sqrt(1 - exp(-2 (lam_t - lam_s)))`, float64 [steps + 1].

    `steps` are the node and target of each. The step to clean data and stages at one time, where it is zero, take
    the scale before them, or after where there is none.
    """
    stds = [target.sigma * np.sqrt(-np.expm1(-2 * abs(target.lam - node.lam))) for node, target in steps]
    stds = [std if np.isfinite(std) and std > 1e-12 else 0.0 for std in [0.0, *stds]]
    carried = list(accumulate(stds, _last_positive))
    first = next((std for std in carried if std), 1.0)
    return torch.tensor([std or first for std in carried], dtype=torch.float64)


def _like(factors: Tensor, states: Tensor) -> Tensor:
    """`factors` [R, B] as multipliers of `states` [R, B, ..]."""
    return factors.to(states).reshape(*factors.shape, *[1] * (states.ndim - factors.ndim))


def _last_positive(before: Any, std: Any) -> Any:
    return std or before
