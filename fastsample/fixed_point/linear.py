"""The trajectory of a table in closed form: a window's next samples are one matrix times what its steps are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.fixed_point.closed_form import Array, ClosedForm, Index
from fastsample.fixed_point.rows import taken, visible
from fastsample.fixed_point.trajectory import Trajectory
from fastsample.sampling.backend import Stored, accumulation_dtype, product
from fastsample.schedules.base import Node
from fastsample.tables.table import Table


@dataclass(frozen=True)
class _Given:
    """What a window's steps were given, `parts` [K, B, ..], and what the values after each step are made of it.

    `values` are those of :meth:`ClosedForm.unroll`, `last` [B, K] the last step's output; the columns are those of
    the parts, one after the other. Steps begin at `begin` [B]. `broken` [B, K] are the columns that are not finite,
    where there are any.
    """

    begin: Index
    values: Array
    last: Array
    parts: tuple[Tensor, ...]
    broken: NDArray[np.bool_] | None = None


class TableTrajectory(Trajectory):
    """The samples of `table` from `x`; `noise(index)` is what its step `index` adds, asked for once, in order.

    What is held is of the window alone. Within a table: the first step is number `begin`, `nodes` are those from
    there on, `stored` is what the steps before left in the stored slots of the lowered table, and `output` the
    model's before `x`. With `sums`, the weights of each of the table's steps' sample and output in one more quantity,
    that is stored too, the last of `stored`.
    """

    def __init__(
        self,
        table: Table,
        x: Tensor,
        nodes: Sequence[Node],
        noise: Callable[[int], Tensor],
        *,
        begin: int = 0,
        stored: Stored = (),
        output: Tensor | None = None,
        sums: Sequence[tuple[float, float]] | None = None,
    ) -> None:
        super().__init__(x, nodes)
        self._rows, self._noise, self._first = [step.next for step in table.steps[begin:]], noise, begin
        self._form = ClosedForm(*(part[begin:] for part in table.lowered.transitions()))
        if sums is not None:
            self._form = self._form.and_sums(sums[begin:])
        self._stored = x.new_zeros((self._form.slots - 1, *x.shape), dtype=accumulation_dtype(x.dtype))
        for slot, value in enumerate(stored):
            if value is not None:
                self._stored[slot] = value
        self._noisy = self._form.noisy
        self._noises, self._drawn = x[None][:0], 0  # those from step `_drawn - len(_noises)` on, that one may read
        self._given: _Given | None = None
        if output is not None:  # as if a window of no steps had been given it
            values = self._form.unroll(np.zeros((len(x), 0), np.int64), replayed=True, noisy=False)
            values = np.pad(values, [(0, 0)] * 3 + [(0, 1)])
            last = np.zeros_like(values[:, 0, 0])
            last[:, -1] = 1.0
            parts = (self._stored, x[None], output[None])
            self._take(_Given(np.zeros(len(x), np.int64), values, last, parts), values[:, 0])

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
        """What is stored before `begin`; what the window was given, and noise that no step reads, is dropped."""
        given = self._given
        if given is None:
            return
        after = given.values[np.arange(len(begin)), begin.numpy() - given.begin]
        if len(self._stored):
            self._stored = self._mixed(after[:, 1:], given)
        self._given = None
        self._noises = self._noises[max(0, int(begin.numpy().min()) - self._drawn + len(self._noises)) :]

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
            given = replace(given, parts=(*given.parts, noises))
        return self._mixed(weights, given).to(states.dtype)

    def _make(self, steps: Index, states: Tensor, outputs: Tensor, slopes: Array | None, *, replayed: bool) -> Tensor:
        """The samples after each of the steps [B, R]."""
        outputs = visible(outputs, states)
        noises = self._noises_of(steps)
        values = self._form.unroll(steps, replayed=replayed, noisy=noises is not None, slopes=slopes)
        sample = self._form.slots - 1 + len(outputs)  # the first of the samples' columns
        last = np.zeros_like(values[:, 0, 0])
        last[:, sample - 1] = 1.0
        if slopes is not None and len(outputs) > 1:  # the last output moves with its sample
            last += slopes[:, -1:] * values[:, -2, 0]
            last[:, sample + len(outputs) - 1] -= slopes[:, -1]
        used = states if slopes is not None or not replayed else states[:1]
        parts = (self._stored, outputs, used) if noises is None else (self._stored, outputs, used, noises)
        return self._take(_Given(steps[:, 0], values, last, parts), values[:, 1:, 0]).to(states.dtype)

    def _take(self, given: _Given, weights: Array) -> Tensor:
        """The sums by `weights` of what is given, until it is committed."""
        sums = self._mixed(weights, given)
        if not np.isfinite(sums.sum().cpu().numpy()):  # 0 times what is not finite is not either
            broken = [~part.flatten(2).isfinite().all(-1) for part in given.parts]
            given = replace(given, broken=torch.cat(broken).T.cpu().numpy())
            sums = self._mixed(weights, given)
        self._given = given
        return sums

    def _mixed(self, weights: Array, given: _Given) -> Tensor:
        """The sums [n, B, ..] of what was given by `weights` [B, n, K]; what has no weight does not enter."""
        dtype, device = self._stored.dtype, self._stored.device
        factors = torch.from_numpy(weights.astype(np.float64 if dtype == torch.float64 else np.float32)).to(device)
        sums: Tensor | None = None
        column = 0
        for part in given.parts:  # not as one, which would be a copy of all of them
            finite = part if given.broken is None else part.nan_to_num(0.0, 0.0, 0.0)
            own = factors[..., column : column + len(part)]
            sums, column = product(own, finite.flatten(2).transpose(0, 1).to(dtype), sums), column + len(part)
        assert sums is not None
        if given.broken is not None:
            broken = np.pad(given.broken, [(0, 0), (0, weights.shape[-1] - given.broken.shape[-1])])
            sums[torch.from_numpy((weights.astype(bool) & broken[:, None]).any(-1))] = torch.nan
        return sums.transpose(0, 1).reshape(weights.shape[1], *self._x.shape)

    def _noises_of(self, steps: Index) -> Tensor | None:
        """The noise of each of the steps [B, R], [R, B, ..], anything where one has none; None where none has any."""
        if not self._noisy.any():
            return None
        first, last = int(steps.min()), int(steps.max())
        drawn = [self._noises]
        for index in range(self._drawn, last + 1):
            drawn.append(self._noise(self._first + index)[None] if self._noisy[index] else self._x[None])
        if len(drawn) > 1:
            self._noises, self._drawn = torch.cat(drawn), last + 1
        if not self._noisy[first : last + 1].any():
            return None
        return taken(self._noises, steps.T - (self._drawn - len(self._noises)))
