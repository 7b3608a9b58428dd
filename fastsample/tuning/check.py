"""The final check of a tuned table: fresh prompts of another kind, fresh seeds, and nothing that may be worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.tables.table import Table
from fastsample.tuning.choose import LARGE, upper_ratio
from fastsample.tuning.linear import linear_of
from fastsample.tuning.pairs import Pairs

Quality = Callable[[Table], Sequence[float]]
"""Scores, the higher the better, of the images that a table makes of the pairs."""


@dataclass(frozen=True)
class Checked:
    """Errors [P] of both tables on the fresh pairs, the upper end of the ratio, and what is kept, in words."""

    untuned: NDArray[np.float64]
    tuned: NDArray[np.float64]
    upper: float
    kept: bool
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """As a stage's record holds it."""
        return {
            **{"untuned": self.untuned.tolist(), "tuned": self.tuned.tolist()},
            **{"upper": self.upper, "kept": self.kept, "verdict": self.verdict},
        }

    @classmethod
    def from_dict(cls, known: dict[str, Any]) -> Checked:
        """From what :meth:`to_dict` gave."""
        errors = np.array(known["untuned"]), np.array(known["tuned"])
        return cls(*errors, known["upper"], known["kept"], known["verdict"])


def final_check(pairs: Pairs, untuned: Table, tuned: Table | None, quality: Quality | None = None) -> Checked:
    """Whether `tuned` is kept: where the upper end of the bootstrap is at most 1, and no quality falls.

    None where no table that was tuned came so far: then the untuned one is measured alone.
    """
    if tuned is None:
        alone = pairs.errors([linear_of(untuned)])[0]
        return Checked(alone, alone, 1.0, False, "untuned: nothing tuned was better on the held-out prompts")
    before, after = pairs.errors([linear_of(untuned), linear_of(tuned)])
    upper = upper_ratio(after, before)
    ratio = float(np.sqrt((after**2).mean() / (before**2).mean()))
    found = f"{ratio:.2f} of the untuned error on {pairs.count} fresh pairs, at most {upper:.2f}"
    if not upper <= 1:
        verdict = f"untuned: tuned it would be {found}, which may be worse"
        return Checked(before, after, min(upper, LARGE), False, verdict)
    if quality is not None:
        scores = [float(np.mean(np.asarray(quality(table), dtype=np.float64))) for table in (untuned, tuned)]
        found += f"; quality {scores[1]:.3g} where it was {scores[0]:.3g}"
        if not scores[1] >= scores[0]:
            return Checked(before, after, upper, False, f"untuned: tuned it would be {found}, which is worse")
    return Checked(before, after, upper, True, f"tuned: {found}")
