"""The trajectory of a table in closed form: a window's next samples are one matrix times what its steps are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.fixed_point.closed_form import Array, ClosedForm, Index
from fastsample.fixed_point.rows import taken
from fastsample.fixed_point.trajectory import Trajectory
from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedules.base import Node
from fastsample.tables.table import Table


@dataclass(frozen=True)
class _Given:
    """What a window's steps were given: `packed` [B, K, D], and what the values after each step are made of it.

    `values` are those of :meth:`ClosedForm.unroll`, `last` [B, K] the last step's output. Steps begin at `begin` [B].
    `broken` [B, K] are the columns that are not finite, where there are any.
    """

    begin: Index
    values: Array
    last: Array
    packed: Tensor
    broken: NDArray[np.bool_] | None = None


class TableTrajectory(Trajectory):
    """The samples of `table` from `x`; `noise(index)` is what step `index` adds, asked for once, in order.

    What is held is of the window alone. `output` is the model's before `x`, where there is one.
    """

    def __init__(
        self,
        table: Table,
        x: Tensor,
        nodes: Sequence[Node],
        noise: Callable[[int], Tensor],
        output: Tensor | None = None,
    ) -> None:
        super().__init__(x, nodes)
        self._rows, self._steps, self._noise = [step.next for step in table.steps], table.lowered.steps, noise
        self._form = ClosedForm(table.lowered)
        self._stored = x.new_zeros((self._form.slots - 1, *x.shape), dtype=accumulation_dtype(x.dtype))
        self._noises: dict[int, Tensor] = {}  # those that a coming step reads
        self._drawn = 0
        self._given: _Given | None = None
        if output is not None:  # as if a window of no steps had been given it
            values = self._form.unroll(np.zeros((len(x), 0), np.int64), replayed=True, noisy=False)
            values = np.pad(values, [(0, 0)] * 3 + [(0, 1)])
            last = np.zeros_like(values[:, 0, 0])
            last[:, -1] = 1.0
            packed = _by_item(torch.cat([self._stored, x[None], output[None]]))
            self._given = _Given(np.zeros(len(x), np.int64), values, last, packed)

    def gain(self, index: int) -> tuple[float, float]:
        """As the table has them."""
        return self._rows[index].sample, self._rows[index].output

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        """The next samples, each of its own sample and output; what earlier steps left is of theirs."""
        return self._make(rows.numpy().T, states, outputs, None, replayed=False)

    def replay(self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None = None) -> Tensor:
        """The next samples by running the steps from the first sample, with outputs that follow their samples."""
        factors = None if slopes is None else slopes.numpy().T
        return self._make(rows.numpy().T, states, outputs, factors, replayed=True)

    def commit(self, begin: Tensor) -> None:
        """What is stored before `begin`; noise that no coming step reads is dropped."""
        given = self._given
        if given is None:
            return
        after = given.values[np.arange(len(begin)), begin.numpy() - given.begin]
        if len(self._stored):
            self._stored = self._mixed(after[:, 1:], given)
        self._given = None
        for index in [index for index in self._noises if index < int(begin.numpy().min())]:
            del self._noises[index]

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """The coming steps with the last output; before there is one, `states` at the noise levels' spread."""
        given = self._given
        if given is None:
            return self.spread_guess(reached, rows, states)
        steps = np.minimum(rows.numpy().T - 1, self.length - 1)
        noises = self._noises_of(steps)
        after = given.values[np.arange(len(steps)), reached.numpy() - given.begin]
        weights = self._form.go_on(after, given.last, steps, noisy=noises is not None)
        if noises is not None:
            given = _given(given.begin, weights, given.last, torch.cat([given.packed, _by_item(noises)], 1))
        return self._mixed(weights, given).to(states.dtype)

    def _make(self, steps: Index, states: Tensor, outputs: Tensor, slopes: Array | None, *, replayed: bool) -> Tensor:
        """The samples after each of the steps [B, R]."""
        noises = self._noises_of(steps)
        values = self._form.unroll(steps, replayed=replayed, noisy=noises is not None, slopes=slopes)
        sample = self._form.slots - 1 + len(outputs)  # the first of the samples' columns
        last = np.zeros_like(values[:, 0, 0])
        last[:, sample - 1] = 1.0
        if slopes is not None and len(outputs) > 1:  # the last output moves with its sample
            last += slopes[:, -1:] * values[:, -2, 0]
            last[:, sample + len(outputs) - 1] -= slopes[:, -1]
        used = states if slopes is not None or not replayed else states[:1]
        parts = [self._stored, outputs, used, *([] if noises is None else [noises])]
        self._given = _given(steps[:, 0], values, last, _by_item(torch.cat(parts)))
        return self._mixed(values[:, 1:, 0], self._given).to(states.dtype)

    def _mixed(self, weights: Array, given: _Given) -> Tensor:
        """The sums [n, B, ..] of what is packed by `weights` [B, n, K]; what has no weight does not enter."""
        factors = torch.from_numpy(weights).to(given.packed.dtype).to(given.packed.device)
        if given.broken is None:
            sums = torch.bmm(factors, given.packed)
        else:
            sums = torch.bmm(factors, given.packed.nan_to_num(0.0, 0.0, 0.0))
            sums[torch.from_numpy((weights.astype(bool) & given.broken[:, None]).any(-1))] = torch.nan
        return sums.transpose(0, 1).reshape(weights.shape[1], *self._x.shape)

    def _noises_of(self, steps: Index) -> Tensor | None:
        """The noise of each of the steps [B, R], [R, B, ..]; None where there is none at all."""
        first, last = int(steps.min()), int(steps.max())
        for index in range(self._drawn, last + 1):
            if self._steps[index].noisy:
                self._noises[index] = self._noise(index)
        self._drawn = max(self._drawn, last + 1)
        if not any(index in self._noises for index in range(first, last + 1)):
            return None
        nothing = torch.zeros_like(next(iter(self._noises.values())))
        every = torch.stack([self._noises.get(index, nothing) for index in range(first, last + 1)])
        return taken(every, steps.T - first)


def _given(begin: Index, values: Array, last: Array, packed: Tensor) -> _Given:
    """With the columns that are not finite, which 0 times them is not either."""
    if math.isfinite(float(packed.sum())):
        return _Given(begin, values, last, packed)
    return _Given(begin, values, last, packed, ~packed.isfinite().all(-1).cpu().numpy())


def _by_item(values: Tensor) -> Tensor:
    """[R, B, ..] as [B, R, D]."""
    return values.flatten(2).transpose(0, 1)
