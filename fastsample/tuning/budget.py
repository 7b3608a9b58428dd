"""What the stages cost in guided evaluations, and how a budget is shared among the cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TEACHER_STEPS = 40
"""Within .0015 of 300 steps on the bundled models, a tenth of the error of a tuned table of 8 evaluations."""
FEW = 4
"""Pairs of the screen's first look, and of the check that the teacher has converged."""
OPENED = 2
"""Evaluations of each pair when its pipeline is first asked: its start, and that again beside others."""
PROBES = 4
"""Evaluations that tell whether a network takes timesteps between whole ones."""
SECOND_LOOK = (2, 8)
"""The fewest and the most cells of the screen that are run on all pairs."""
KEPT = 2
"""Bases whose grid is tuned."""


@dataclass(frozen=True)
class Sizes:
    """Pairs of each set; `rated` says whether images are made for a quality callable."""

    tune: int
    validation: int
    check: int
    rated: bool = False

    @property
    def few(self) -> int:
        """Pairs of the first look."""
        return min(FEW, self.tune)

    def shared(self) -> int:
        """What the cells of one guidance share: trajectories, and those of half the steps."""
        pairs = self.tune + self.validation + self.check
        return pairs * (OPENED + TEACHER_STEPS - 1) + self.few * (OPENED + TEACHER_STEPS // 2 - 1)

    def checking(self, count: int) -> int:
        """The final check of a cell of `count` evaluations: two tables, and their images where they are rated."""
        return 2 * (count - 1) * self.check + (2 * count * self.check if self.rated else 0)

    def least(self, count: int) -> int:
        """The least that a cell takes: two cells of the screen at its first look, the fewest at its second."""
        looks = SECOND_LOOK[0] + 1
        screened = 2 * self.few + looks * self.tune + (1 + KEPT) * self.validation
        return (count - 1) * screened + self.checking(count)


def needed(sizes: Sizes, counts: Sequence[int], scales: int) -> int:
    """The smallest budget for cells of `counts` evaluations at each of `scales` guidance scales."""
    return PROBES + scales * (sizes.shared() + sum(map(sizes.least, counts)))


def limit(sizes: Sizes, budget: int, spent: int, counts: Sequence[int], later: Sequence[int], scales: int) -> int:
    """How much may have been spent when the cell of `counts[0]` evaluations comes to its final check.

    `counts` are the cells left at its guidance, `later` those at each of `scales` more. What is not needed by the
    least of them is shared by the square of their evaluations, which their derivatives cost.
    """
    after = scales * (sizes.shared() + sum(map(sizes.least, later)))
    spare = budget - spent - sum(map(sizes.least, counts)) - after
    total = sum(count**2 for count in counts) + scales * sum(count**2 for count in later)
    return spent + sizes.least(counts[0]) - sizes.checking(counts[0]) + spare * counts[0] ** 2 // total
