"""Solving a triangular system by sweeps: every state of a window at once, again and again, until they settle.

Each sweep commits at least one state of every batch item, since the one that follows the committed ones depends on
nothing else; so a system of n states takes at most n sweeps, from any guess and at any tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.fixed_point.coarse import Strides, calm, dense, filled_in, near_enough, strided, strides_of
from fastsample.fixed_point.rows import taken
from fastsample.fixed_point.triangular import TriangularSystem
from fastsample.fixed_point.updates import Sweep, Update, make_update


@dataclass
class ParallelReport:
    """What an iteration did. `evaluations` are rows times batch items; `sweeps` the rounds one after the other.

    `starts[s]` are the indices of the first uncommitted state of each batch item after sweep s + 1, and
    `residuals[s]` is the largest change of a state in that sweep, in the unit of the tolerance; of a block that
    is left early, the last one says how far it was from settled. `substituted` are the states from which a block was
    solved one after the other. `stopped`: a bound of sweeps ended it, and some of the states are the last guesses.
    """

    sweeps: int = 0
    evaluations: int = 0
    starts: list[tuple[int, ...]] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    substituted: list[int] = field(default_factory=list)
    stopped: bool = False


class FixedPoint:
    """The iteration's state between sweeps, for callers that evaluate the rows themselves; else see :func:`solve`.

    A sweep is: evaluate `rows` at `states`, then `sweep(outputs)`; until `done`. The states before `begin` [B] are
    final, and so is `leading` [B, ..], the one at `begin`; the window slides by the states whose inputs moved by no
    more than `tolerance`, each batch item by its own. Only the window is held, unless with `keep`: then `trajectory`
    [length + 1, B, ..] has the states that are final and the window's guesses, zeros elsewhere. A sweep tells
    `on_commit(first, states, count)` what it made final: `count` [B] states of each item from number `first` [B] on,
    the first rows of `states` [R, B, ..].

    `strides` are those of the first sweeps (:mod:`fastsample.fixed_point.coarse`): a sweep of stride s evaluates the
    first rows of the window, as far as they may settle, the last, and those whose number s divides; the outputs
    between are interpolated, and only states of the first rows are committed.
    """

    def __init__(
        self,
        system: TriangularSystem,
        update: Update,
        *,
        window: int | None = None,
        tolerance: float = 0.0,
        strides: Strides = "auto",
        keep: bool = False,
        on_commit: Callable[[NDArray[np.int64], Tensor, NDArray[np.int64]], None] | None = None,
    ) -> None:
        check_extent(window, tolerance)
        self.system, self.update, self.tolerance, self._on_commit = system, update, tolerance, on_commit
        self.window = min(window or system.length, system.length)
        self._strides = strides_of(strides, self.window, system.length, tolerance)
        self._adaptive = strides == "auto"
        self.report = ParallelReport()
        self._held = system.initial()  # the states from `begin` on, [held, B, ..]
        self._begin = np.zeros(self._held.shape[1], dtype=np.int64)
        self._reached = np.full_like(self._begin, len(self._held) - 1)  # the last state that has a value
        self._kept: Tensor | None = None
        if keep:
            self._kept = self._held.new_zeros((system.length + 1, *self._held.shape[1:]))
            self._kept[: len(self._held)] = self._held
        self._calm = np.zeros_like(self._begin)  # the places that may settle in this sweep
        self._slide(np.zeros_like(self._begin), self._held[1:])

    @property
    def begin(self) -> Tensor:
        """The last final state of each batch item, [B]."""
        return torch.from_numpy(self._begin)

    @property
    def done(self) -> bool:
        """Whether every state of every batch item is final."""
        return bool((self._begin == self.system.length).all())

    @property
    def trajectory(self) -> Tensor:
        """All states, where they are kept; ValueError where they are not."""
        if self._kept is None:
            raise ValueError("trajectory is held by the window alone: give keep=True to have all states")
        return self._kept

    @property
    def leading(self) -> Tensor:
        """The last final state of each batch item, [B, ..]."""
        return self._held[0]

    @property
    def coarse(self) -> bool:
        """Whether this sweep leaves out rows, whose outputs are interpolated."""
        return self._stride > 1

    @property
    def rows(self) -> Tensor:
        """The states to evaluate, [R, B]."""
        return torch.from_numpy(np.minimum(self._begin + self._asked, self.system.length - 1))

    @property
    def states(self) -> Tensor:
        """The values of `rows`, [R, B, ..]."""
        return taken(self._held, self._asked)

    def sweep(self, outputs: Tensor, *, hold: bool = False, last: bool = False) -> None:
        """Take the outputs of `rows` at `states`, move the states, and commit those that have settled.

        With `hold` none is committed, for outputs that are not the system's own. With `last` it is done after this
        sweep: what has not settled stays as it is guessed.
        """
        places, size = self._asked, self._size
        coarse = self.coarse
        rows = torch.from_numpy(np.minimum(self._begin + np.arange(size)[:, None], self.system.length - 1))
        valid = self._begin + np.arange(size)[:, None] < self.system.length
        states, old = self._held[:size], self._held[1:]
        evaluated = None
        if coarse:
            outputs, evaluated = filled_in(outputs, places, size)
        new, plain = self.update(self.system, Sweep(rows, states, outputs, old, evaluated))
        change = self.system.change(torch.from_numpy(rows.numpy() + 1), plain, old).cpu().numpy()
        settled = ((change <= self.tolerance) | ~valid).cumprod(0).sum(0)
        # these states' inputs have settled, and their outputs are not interpolated
        most = dense(self._stride, self._calm) if coarse else size
        final = np.minimum(np.minimum(1 + settled, 0 if hold else most), valid.sum(0))
        if new is not plain:
            keep = torch.from_numpy(np.arange(size)[:, None] < final).to(new.device)
            torch.where(keep.reshape(*keep.shape, *[1] * (new.ndim - 2)), plain, new, out=new)
        del states, old, plain  # what is not read again need not be held while the window is copied
        self.report.sweeps += 1
        self.report.evaluations += places.size
        self.report.residuals.append(float(change[valid].max()))
        self._calm = calm(change, final, self.tolerance)
        if last:
            self.window = self.system.length  # guesses to the end
        self._go_on(final, new)
        if last and not self.done:
            self.report.stopped = True
            self._go_on(self.system.length - self._begin, self._held[1:])
        self.report.starts.append(tuple(self._begin.tolist()))

    def _go_on(self, final: NDArray[np.int64], new: Tensor) -> None:
        """Commit the first `final` [B] of the states `new` after the leading one."""
        if self._on_commit is not None:
            self._on_commit(self._begin + 1, new, final)
        self._begin = self._begin + final
        self._slide(final, new)

    @property
    def _stride(self) -> int:
        near = self._adaptive and self.report.residuals and self.report.residuals[-1] < near_enough(self.tolerance)
        return 1 if near or self.report.sweeps >= len(self._strides) else self._strides[self.report.sweeps]

    def _places(self) -> NDArray[np.int64]:
        """The places in the window that this sweep evaluates, [R, B]; those beyond an item's last are its last."""
        last = np.minimum(self._size, self.system.length - self._begin).clip(min=1) - 1
        return strided(self._begin, last, self._stride, dense(self._stride, self._calm))

    @property
    def _size(self) -> int:
        return int(min(self.window, self.system.length - self._begin.min()))

    def _slide(self, final: NDArray[np.int64], new: Tensor) -> None:
        """Go on by `final` [B] states, with `new` ones after the first, and guess those that the window comes to."""
        end = np.minimum(self._begin + self.window, self.system.length)
        first = self._begin - final  # the state at place 0
        place = np.minimum(self._begin + np.arange(self._size + 1)[:, None], end) - first
        guessed = place > self._reached - first
        parts = [self._held[:1], new]
        self._record(new, first + 1, self._reached)
        if guessed.any():
            rows = self._reached + 1 + np.arange((end - self._reached).max())[:, None]
            at_last = self._reached - first
            known = taken(new, np.maximum(at_last - 1, 0)[None])[0] if len(new) else self._held[0]
            if (at_last == 0).any():
                first_ones = torch.from_numpy(at_last == 0).reshape(-1, *[1] * (known.ndim - 1)).to(known.device)
                known = torch.where(first_ones, self._held[0], known)
            guess = self._guess(np.minimum(rows, self.system.length), known)
            self._record(guess, self._reached + 1, end)
            place = np.where(guessed, place + len(new) - at_last, place)
            parts.append(guess)
        self.system.commit(self.begin)
        if (place[0] > 0).all():  # one copy less
            parts, place = [new[int(place.min()) - 1 :], *parts[2:]], place - place.min()
        self._held = taken(torch.cat(parts) if len(parts) > 1 else parts[0], place)
        self._reached = np.maximum(self._reached, end)
        self._asked = self._places()

    def _guess(self, rows: NDArray[np.int64], known: Tensor) -> Tensor:
        """The states `rows` [n, B], those after the last that has a value, `known` [B, ..]."""
        if self.update.copies:
            return known.expand(len(rows), *known.shape)
        return self.system.extend(torch.from_numpy(self._reached), torch.from_numpy(rows), known)

    def _record(self, values: Tensor, first: NDArray[np.int64], last: NDArray[np.int64]) -> None:
        """Where states are kept, keep `values` [n, B, ..], each item's from state `first` to `last` [B]."""
        if self._kept is None:
            return
        rows = first + np.arange(len(values))[:, None]
        row, item = np.nonzero(rows <= last)
        self._kept[rows[row, item], item] = values[row, item]


def solve(
    system: TriangularSystem,
    update: Update,
    *,
    window: int | None = None,
    tolerance: float = 0.0,
    strides: Strides = "auto",
    keep: bool = False,
    on_sweep: Callable[[FixedPoint], None] | None = None,
) -> FixedPoint:
    """The iteration when it is done; the arguments are those of :class:`FixedPoint`.

    `on_sweep` is called after every sweep. Raises ValueError when the window is below 1, the tolerance negative or a
    stride below 1.
    """
    iteration = FixedPoint(system, update, window=window, tolerance=tolerance, strides=strides, keep=keep)
    while not iteration.done:
        iteration.sweep(system.evaluate(iteration.rows, iteration.states))
        if on_sweep is not None:
            on_sweep(iteration)
    return iteration


def check_settings(iteration: str, window: int | None, tolerance: float, strides: Strides = "none") -> None:
    """ValueError for an unknown iteration, a window (None: all states) or stride below 1, or a negative tolerance."""
    make_update(iteration)
    strides_of(strides, 1, 1)
    check_extent(window, tolerance)


def check_extent(window: int | None, tolerance: float) -> None:
    """ValueError for a window below 1, or a tolerance that is negative or not finite."""
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window = {window!r}: give the states evaluated at once, 1 or more, or None for all")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance = {tolerance!r}: give 0 (exact) or more")
