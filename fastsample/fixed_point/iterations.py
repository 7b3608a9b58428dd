"""Solving a triangular system by sweeps: every state of a window at once, again and again, until they settle.

Each sweep commits at least one state of every batch item, since the one that follows the committed ones depends on
nothing else; so a system of n states takes at most n sweeps, from any guess and at any tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsample.fixed_point.triangular import TriangularSystem
from fastsample.fixed_point.updates import Update, make_update


@dataclass
class ParallelReport:
    """What an iteration did. `evaluations` are rows times batch items; `sweeps` the rounds one after the other.

    `starts[s]` are the indices of the first uncommitted state of each batch item after sweep s + 1, and
    `residuals[s]` is the largest change of a state in that sweep, in the unit of the tolerance; of a block that
    is left early, the last one says how far it was from settled. `substituted` are the states from which a block was
    solved one after the other.
    """

    sweeps: int = 0
    evaluations: int = 0
    starts: list[tuple[int, ...]] = field(default_factory=list)
    residuals: list[float] = field(default_factory=list)
    substituted: list[int] = field(default_factory=list)


class FixedPoint:
    """The iteration's state between sweeps, for callers that evaluate the rows themselves; else see :func:`solve`.

    A sweep is: evaluate `rows` at `states`, then `sweep(outputs)`; until `done`. `trajectory` [length + 1, B, ..]
    holds every state: those up to `begin` [B] are final, those of the window guesses, the others zeros. The window
    slides by the states whose inputs moved by no more than `tolerance`, each batch item by its own.
    """

    def __init__(
        self,
        system: TriangularSystem,
        update: Update,
        *,
        window: int | None = None,
        tolerance: float = 0.0,
    ) -> None:
        check_extent(window, tolerance)
        self.system, self.update, self.tolerance = system, update, tolerance
        self.window = min(window or system.length, system.length)
        self.report = ParallelReport()
        guess = system.initial()
        self.trajectory = guess.new_zeros((system.length + 1, *guess.shape[1:]))
        self.trajectory[: len(guess)] = guess
        self._items = torch.arange(guess.shape[1])
        self.begin = torch.zeros(guess.shape[1], dtype=torch.long)
        self._reached = torch.full_like(self.begin, len(guess) - 1)  # the last state that has a value
        self._extend()

    @property
    def done(self) -> bool:
        """Whether every state of every batch item is final."""
        return bool((self.begin == self.system.length).all())

    @property
    def rows(self) -> Tensor:
        """The states to evaluate, [R, B]."""
        n = self.system.length
        size = min(self.window, n - int(self.begin.min()))
        return (self.begin + torch.arange(size)[:, None]).clamp(max=n - 1)

    @property
    def states(self) -> Tensor:
        """The values of `rows`, [R, B, ..]."""
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
        self.report.sweeps += 1
        self.report.evaluations += rows.numel()
        self.report.residuals.append(float(change[valid].max()))
        self.begin = self.begin + final
        self.system.commit(self.begin)
        self._extend()
        self.report.starts.append(tuple(self.begin.tolist()))

    def _values(self, index: Tensor) -> Tensor:
        return self.trajectory[index.to(self.trajectory.device), self._items.to(self.trajectory.device)]

    def _extend(self) -> None:
        """Guess the states that the window has come to."""
        end = (self.begin + self.window).clamp(max=self.system.length)
        missing = int((end - self._reached).max())
        if missing <= 0:
            return
        rows = self._reached + 1 + torch.arange(missing)[:, None]
        new, items = rows <= end, self._items.expand_as(rows)
        known = self._values(self._reached)
        if self.update.copies:
            guess = known.expand(len(rows), *known.shape)
        else:
            guess = self.system.extend(self._reached, rows.clamp(max=self.system.length), known)
        self.trajectory[rows[new].to(guess.device), items[new].to(guess.device)] = guess[new.to(guess.device)]
        self._reached = torch.maximum(self._reached, end)


def solve(
    system: TriangularSystem,
    update: Update,
    *,
    window: int | None = None,
    tolerance: float = 0.0,
    on_sweep: Callable[[FixedPoint], None] | None = None,
) -> tuple[Tensor, ParallelReport]:
    """All states [length + 1, B, ..] of `system`, and what it took; the arguments are those of :class:`FixedPoint`.

    `on_sweep` is called after every sweep. Raises ValueError when the window is below 1 or the tolerance negative.
    """
    iteration = FixedPoint(system, update, window=window, tolerance=tolerance)
    while not iteration.done:
        iteration.sweep(system.evaluate(iteration.rows, iteration.states))
        if on_sweep is not None:
            on_sweep(iteration)
    return iteration.trajectory, iteration.report


def check_settings(iteration: str, window: int | None, tolerance: float) -> None:
    """ValueError for an unknown iteration, a window below 1 (None is all states) or a negative tolerance."""
    make_update(iteration)
    check_extent(window, tolerance)


def check_extent(window: int | None, tolerance: float) -> None:
    """ValueError for a window below 1 or a negative tolerance."""
    if window is not None and (not isinstance(window, int) or window < 1):
        raise ValueError(f"window = {window!r}: give the states evaluated at once, 1 or more, or None for all")
    if not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance!r}: give 0 (exact) or more")


def _like(mask: Tensor, states: Tensor) -> Tensor:
    """`mask` [R, B] on the states' device, with their dimensions."""
    return mask.to(states.device).reshape(*mask.shape, *[1] * (states.ndim - mask.ndim))
