"""What the stages cost in guided evaluations, and how a budget is shared among the cells and their stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TEACHER_STEPS = 40
"""Within .002 of 200 steps on the bundled models up to guidance 3; an entry says how far half of them are off."""
FEW = 4
"""Pairs of the check that the teacher has converged."""
OPENED = 2
"""Evaluations of each pair when its pipeline is first asked: its start, and that again beside others."""
PROBES = 4
"""Evaluations that tell whether a network takes timesteps between whole ones."""
FIRST_LOOK, SECOND_LOOK = (4, 2, 1), 8
"""Pairs of the screen's first look, as many as the budget holds for all cells, and of its second."""
LOOKS = (0.25, 0.15, 0.1)
"""The part of what a cell may spend that each look of the screen takes at most, the last on all pairs tuned on."""
LAST_LOOK = 12
"""Cells of the last look, at most."""
KEPT = 2
"""Bases that are tuned: the second one where the budget holds it."""
RIVALS = 4
"""The best untuned cells of the screen, which the tuned table meets in the final check."""
ENOUGH = 16
"""Pairs below which no more than the grid is tuned, and to which a small budget reduces them."""


@dataclass(frozen=True)
class Sizes:
    """Pairs of each set; `rated` says whether images are made for a quality callable."""

    tune: int
    validation: int
    check: int
    rated: bool = False

    def shared(self) -> int:
        """What the cells of one guidance share: trajectories, and those of half the steps."""
        pairs = self.tune + self.validation + self.check
        return pairs * (OPENED + TEACHER_STEPS - 1) + min(FEW, self.tune) * (OPENED + TEACHER_STEPS // 2 - 1)

    def checking(self, count: int, rivals: int = 1) -> int:
        """The final check of a cell: its table and `rivals`, and the images of two of them where they are rated."""
        return ((1 + rivals) * (count - 1) + 2 * count * self.rated) * self.check

    def rivals(self, count: int, left: int) -> int:
        """How many untuned cells a final check of at most `left` evaluations holds, one at least."""
        return max(1, min(RIVALS, (left - self.checking(count, 0)) // ((count - 1) * self.check)))

    def looks(self) -> tuple[int, int, int]:
        """The fewest pairs of each look of the screen."""
        return 1, min(SECOND_LOOK, self.tune), min(ENOUGH, self.tune)

    def least(self, count: int) -> int:
        """The least that a cell takes: two cells at each look, one more at the last, and the final check."""
        looks, last = 2 * sum(self.looks()), self.looks()[-1] + 3 * self.validation
        return (count - 1) * (looks + last) + OPENED * sum(self.looks()) + self.checking(count)


def needed(sizes: Sizes, counts: Sequence[int], scales: int) -> int:
    """The smallest budget for cells of `counts` evaluations at each of `scales` guidance scales."""
    return PROBES + scales * (sizes.shared() + sum(map(sizes.least, counts)))


def limit(sizes: Sizes, budget: int, spent: int, counts: Sequence[int], later: Sequence[int], scales: int) -> int:
    """How much may have been spent when the cell of `counts[0]` evaluations has had its final check.

    `counts` are the cells left at its guidance, `later` those at each of `scales` more. What is not needed by the
    least of them is shared by the square of their evaluations, which their derivatives cost.
    """
    after = scales * (sizes.shared() + sum(map(sizes.least, later)))
    spare = budget - spent - sum(map(sizes.least, counts)) - after
    total = sum(count**2 for count in counts) + scales * sum(count**2 for count in later)
    return spent + sizes.least(counts[0]) + spare * counts[0] ** 2 // total


def kept_back(sizes: Sizes, count: int, most: int) -> int:
    """What of the `most` that a cell may spend is kept for its final check: as many rivals as an eighth pays."""
    return sizes.checking(count, sizes.rivals(count, (most - sizes.least(count)) // 8 + sizes.checking(count)))
