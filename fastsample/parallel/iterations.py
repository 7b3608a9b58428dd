"""Solving a triangular system by sweeps: every state of a window at once, again and again, until they settle.

Each sweep commits at least one state of every batch item, since the one that follows the committed ones depends on
nothing else; so a system of n states takes at most n sweeps, from any guess and at any tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsample.parallel.triangular import TriangularSystem
from fastsample.parallel.updates import Update


@dataclass
class ParallelReport:
    """What an iteration did. `evaluations` are rows times batch items; `sweeps` the rounds one after the other.

    `starts[s]` are the indices of the first uncommitted state of each batch item after sweep s + 1, and
    `residuals[s]` is the largest change of a state in that sweep, in the unit of the tolerance; for `block` sweeps
    of a system that is stopped early, the last one of a block says how far it was from settled. `substituted` are the
    states from which a block was solved one after the other.
    """

    sweeps: int = 0
    evaluations: int = 0
    starts: list[tuple[int, ...]] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    substituted: list[int] = field(default_factory=list)


class FixedPoint:
    """The iteration's state between sweeps, for callers that evaluate the rows themselves; else see :func:`solve`.

    A sweep is: evaluate `rows` at `states`, then `sweep(outputs)`; until `done`. `trajectory` [length + 1, B, ..]
    holds every state, those up to `begin` [B] final. The window slides by the states whose inputs moved by no more
    than `tolerance`, each batch item by its own; with `blocks` (ends of blocks, the last one `length`) it ends with
    the block, which is settled, or swept `max_sweeps` times, before the next one starts, all batch items at once.
    """

    def __init__(
        self,
        system: TriangularSystem,
        update: Update,
        *,
        window: int | None = None,
        tolerance: float = 0.0,
        blocks: Sequence[int] | None = None,
        max_sweeps: int | Sequence[int] | None = None,
    ) -> None:
        check_window(window)
        check_tolerance(tolerance)
        self.system, self.update, self.tolerance = system, update, tolerance
        self.window = min(window or system.length, system.length)
        self.blocks = list(blocks) if blocks is not None else None
        self.report = ParallelReport()
        guess = system.initial()
        self._guessed = len(guess) > 1
        self.trajectory = guess.new_empty((system.length + 1, *guess.shape[1:]))
        self.trajectory[: len(guess)] = guess
        self._items = torch.arange(guess.shape[1])
        self.begin = torch.zeros(guess.shape[1], dtype=torch.long)
        self._reached = self.begin.clone()  # the last state that a sweep has given a value
        self._limits = self._sweep_limits(max_sweeps)
        self._swept = 0  # sweeps of this block

    @property
    def done(self) -> bool:
        """Whether every state of every batch item is final."""
        return bool((self.begin == self.system.length).all())

    @property
    def rows(self) -> Tensor:
        """The states to evaluate, [R, B]."""
        n = self.system.length
        if self.blocks is not None:
            begin, end = int(self.begin[0]), self._block_end()
            return torch.arange(begin, end)[:, None].expand(-1, len(self.begin))
        size = min(self.window, n - int(self.begin.min()))
        return (self.begin + torch.arange(size)[:, None]).clamp(max=n - 1)

    @property
    def states(self) -> Tensor:
        """The values of `rows`, [R, B, ..]; those not reached before are guessed from the last one that was."""
        return self._values(self.rows)

    def sweep(self, outputs: Tensor) -> None:
        """Take the outputs of `rows` at `states`, move the states, and commit those that have settled."""
        rows, n = self.rows, self.system.length
        valid = self.begin + torch.arange(len(rows))[:, None] < n
        old = self._values(rows + 1)
        new, plain = self.update(self.system, rows, self._values(rows), outputs, old)
        change = self.system.change(rows + 1, plain, old).cpu()
        settled = ((change <= self.tolerance) | ~valid).long().cumprod(0).sum(0)
        final = (1 + settled).clamp(max=valid.sum(0))  # these states' inputs have settled
        if new is not plain:
            keep = torch.arange(len(rows))[:, None] < final
            new = torch.where(_like(keep, new), plain, new)
        targets = torch.where(valid, rows + 1, n).to(self.trajectory.device)
        items = self._items.expand_as(rows)
        self.trajectory[targets[valid], items[valid]] = new[valid]
        self._reached = torch.maximum(self._reached, self.begin + valid.sum(0))
        self.report.sweeps += 1
        self.report.evaluations += rows.numel()
        self.report.residuals.append(float(change[valid].max()))
        if self.blocks is None:
            self.begin = self.begin + final
        elif not self.overflowed:
            self._slide_in_block(len(rows), int(final.min()))
        self.system.commit(self.begin)
        self.report.starts.append(tuple(self.begin.tolist()))

    @property
    def overflowed(self) -> bool:
        """Whether the last sweep of a block gave values that are not finite; it committed none of them."""
        return self.blocks is not None and bool(self.report.residuals) and not math.isfinite(self.report.residuals[-1])

    def substitute(self) -> None:
        """Solve the rest of this block one state after the other; needs `blocks`."""
        begin, end = int(self.begin[0]), self._block_end()
        state = self.trajectory[begin]
        for index in range(begin, end):
            row = torch.full((1, len(self.begin)), index)
            state = self.system.advance(row, state[None], self.system.evaluate(row, state[None]))[0]
            self.trajectory[index + 1] = state
        self.report.sweeps += end - begin
        self.report.evaluations += (end - begin) * len(self.begin)
        self.report.substituted.append(begin)
        self.begin, self._swept = torch.full_like(self.begin, end), 0
        self._reached = self.begin.clone()
        self.system.commit(self.begin)

    def _slide_in_block(self, size: int, settled: int) -> None:
        """Commit what has settled for all batch items of the `size` states left, or all of them at the sweep limit."""
        self._swept += 1
        assert self.blocks is not None
        if self._swept >= self._limits[self.blocks.index(int(self.begin[0]) + size)]:
            settled = size
        self.begin = self.begin + settled
        if settled == size:
            self._swept = 0

    def _block_end(self) -> int:
        assert self.blocks is not None
        return next(end for end in self.blocks if end > int(self.begin[0]))

    def _values(self, index: Tensor) -> Tensor:
        reached = index if self._guessed else torch.minimum(index, self._reached)
        device = self.trajectory.device
        values = self.trajectory[reached.to(device), self._items.to(device)]
        return values if torch.equal(reached, index) else self.system.extend(reached, index, values)

    def _sweep_limits(self, max_sweeps: int | Sequence[int] | None) -> list[int]:
        if self.blocks is None:
            return []
        sizes = [end - begin for begin, end in zip([0, *self.blocks], self.blocks, strict=False)]
        limits = [max_sweeps] * len(sizes) if max_sweeps is None or isinstance(max_sweeps, int) else list(max_sweeps)
        return [size if limit is None else min(limit, size) for limit, size in zip(limits, sizes, strict=True)]


def solve(
    system: TriangularSystem,
    update: Update,
    *,
    window: int | None = None,
    tolerance: float = 0.0,
    blocks: Sequence[int] | None = None,
    max_sweeps: int | Sequence[int] | None = None,
    on_sweep: Callable[[FixedPoint], None] | None = None,
) -> tuple[Tensor, ParallelReport]:
    """All states [length + 1, B, ..] of `system`, and what it took; the arguments are those of :class:`FixedPoint`.

    A block whose iterates overflow is solved one state after the other, which the report says. `on_sweep` is called
    after every sweep. Raises ValueError when the window is below 1 or the tolerance negative.
    """
    iteration = FixedPoint(system, update, window=window, tolerance=tolerance, blocks=blocks, max_sweeps=max_sweeps)
    while not iteration.done:
        iteration.sweep(system.evaluate(iteration.rows, iteration.states))
        if iteration.overflowed:
            iteration.substitute()
        if on_sweep is not None:
            on_sweep(iteration)
    return iteration.trajectory, iteration.report


def check_window(window: int | None) -> None:
    """ValueError unless `window` is at least 1, or None for all states."""
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window = {window!r}: give the states evaluated at once, 1 or more, or None for all")


def check_tolerance(tolerance: float) -> None:
    """ValueError unless `tolerance` is 0 or more."""
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance!r}: give 0 (exact) or more")


def _like(mask: Tensor, states: Tensor) -> Tensor:
    """`mask` [R, B] on the states' device, with their dimensions."""
    return mask.to(states.device).reshape(*mask.shape, *[1] * (states.ndim - mask.ndim))
