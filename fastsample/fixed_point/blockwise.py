"""Solving a triangular system block after block: Gauss-Seidel between blocks, sweeps within one.

A block's sweeps evaluate what of it has not settled, all batch items alike. As for a window, a sweep commits at least
one state, so that a block of n states takes at most n sweeps; with blocks of one state this is forward substitution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastsample.fixed_point.iterations import ParallelReport, check_extent
from fastsample.fixed_point.triangular import TriangularSystem
from fastsample.fixed_point.updates import Jacobi, Sweep, Update


class BlockIteration:
    """The iteration's state between sweeps; use :func:`solve_blocks` unless you stop early.

    A sweep is: evaluate `rows` at `states`, then `sweep(outputs)`; until `done`. `trajectory` [length + 1, B, ..]
    holds every state, those up to `begin` final. `ends` are the blocks' last states, ascending up to `length`. A
    block is left once its states' inputs moved by no more than `tolerance`, or after `max_sweeps` (one number, or one
    a block).
    """

    def __init__(
        self,
        system: TriangularSystem,
        update: Update,
        ends: Sequence[int],
        *,
        tolerance: float = 0.0,
        max_sweeps: int | Sequence[int] | None = None,
    ) -> None:
        check_extent(None, tolerance)
        self.system, self.update, self.tolerance = system, update, tolerance
        self.report = ParallelReport()
        self.begin = 0
        self._ends = iter(ends)
        limits = [max_sweeps] * len(ends) if max_sweeps is None or isinstance(max_sweeps, int) else max_sweeps
        self._limits = iter(limits)
        guess = system.initial()
        self._guessed = len(guess) > 1
        later = guess.new_zeros((system.length + 1 - len(guess), *guess.shape[1:]))
        self.trajectory = guess if self._guessed else torch.cat([guess, later])
        self._enter()

    @property
    def done(self) -> bool:
        """Whether every state is final."""
        return self.begin == self.system.length

    @property
    def rows(self) -> Tensor:
        """The states to evaluate, [R, B]."""
        return self._rows(self.begin, self._end)

    @property
    def states(self) -> Tensor:
        """The values of `rows`, [R, B, ..]."""
        return self.trajectory[self.begin : self._end]

    @property
    def overflowed(self) -> bool:
        """Whether the last sweep gave values that are not finite, of which it committed none: `substitute` next."""
        return bool(self.report.residuals) and not math.isfinite(self.report.residuals[-1])

    def sweep(self, outputs: Tensor) -> None:
        """Take the outputs of `rows` at `states`, move the states, and commit those that have settled."""
        rows, old = self.rows, self.trajectory[self.begin + 1 : self._end + 1]
        new, plain = self.update(self.system, Sweep(rows, self.states, outputs, old))
        changes = self.system.change(rows + 1, plain, old).amax(1).tolist()
        finite = all(map(math.isfinite, changes))
        moved = (index for index, change in enumerate(changes) if change > self.tolerance)
        final = min(1 + next(moved, len(rows)), len(rows))
        self.trajectory[self.begin + 1 : self._end + 1] = new
        if new is not plain:
            self.trajectory[self.begin + 1 : self.begin + 1 + final] = plain[:final]
        self._swept += 1
        self._count(1, rows.numel())
        self.report.residuals.append(max(changes) if finite else math.inf)
        if finite:
            self._commit(self._end if self._swept == self._limit else self.begin + final)

    def substitute(self) -> None:
        """Solve the rest of the block one state after the other."""
        begin, items = self.begin, self.trajectory.shape[1]
        for index in range(begin, self._end):
            row, state = self._rows(index, index + 1), self.trajectory[index : index + 1]
            self.trajectory[index + 1] = self.system.advance(row, state, self.system.evaluate(row, state))[0]
        self._count(self._end - begin, (self._end - begin) * items)
        self._commit(self._end)

    def _commit(self, begin: int) -> None:
        self.begin = begin
        items = self.trajectory.shape[1]
        self.report.starts.append((begin,) * items)
        self.system.commit(torch.full((items,), begin))
        if begin == self._end and not self.done:
            self._enter()

    def _enter(self) -> None:
        """Start on the next block, from a guess of its states where the system gave none."""
        self._end, self._limit, self._swept = next(self._ends), next(self._limits), 0
        if not self._guessed:
            rows = self._rows(self.begin + 1, self._end + 1)
            reached = torch.full_like(rows[0], self.begin)
            guess = self.system.extend(reached, rows, self.trajectory[self.begin])
            self.trajectory[self.begin + 1 : self._end + 1] = guess

    def _rows(self, begin: int, end: int) -> Tensor:
        return torch.arange(begin, end)[:, None].expand(-1, self.trajectory.shape[1])

    def _count(self, sweeps: int, evaluations: int) -> None:
        self.report.sweeps += sweeps
        self.report.evaluations += evaluations


def solve_blocks(
    system: TriangularSystem,
    update: Update,
    ends: Sequence[int],
    *,
    tolerance: float = 0.0,
    max_sweeps: int | Sequence[int] | None = None,
    on_sweep: Callable[[BlockIteration], None] | None = None,
) -> tuple[Tensor, ParallelReport]:
    """All states [length + 1, B, ..] of `system`, and what it took; arguments as :class:`BlockIteration`'s.

    A block whose iterates overflow is solved one state after the other, which the report says. `on_sweep` is called
    after every sweep. Raises ValueError when the tolerance is negative.
    """
    iteration = BlockIteration(system, update, ends, tolerance=tolerance, max_sweeps=max_sweeps)
    while not iteration.done:
        iteration.sweep(system.evaluate(iteration.rows, iteration.states))
        if iteration.overflowed:
            iteration.report.substituted.append(iteration.begin)
            iteration.substitute()
        if on_sweep is not None:
            on_sweep(iteration)
    return iteration.trajectory, iteration.report


def substitute(system: TriangularSystem) -> tuple[Tensor, ParallelReport]:
    """All states [length + 1, B, ..] by forward substitution: one after the other, the sequential result."""
    iteration = BlockIteration(system, Jacobi(), [system.length])
    iteration.substitute()
    return iteration.trajectory, iteration.report
