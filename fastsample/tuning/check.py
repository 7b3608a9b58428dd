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
    """Errors [P] of both tables on the fresh pairs, the upper end of the ratio, and what is kept, in words.

    `best` is which of the untuned tables it was compared with.
    """

    best: int
    untuned: NDArray[np.float64]
    tuned: NDArray[np.float64]
    upper: float
    kept: bool
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """As a stage's record holds it."""
        return {**vars(self), "untuned": self.untuned.tolist(), "tuned": self.tuned.tolist()}

    @classmethod
    def from_dict(cls, known: dict[str, Any]) -> Checked:
        """From what :meth:`to_dict` gave."""
        return cls(**{**known, "untuned": np.array(known["untuned"]), "tuned": np.array(known["tuned"])})


def final_check(
    pairs: Pairs, untuned: Sequence[Table], tuned: Table | None, cells: int, quality: Quality | None = None
) -> Checked:
    """Whether `tuned` is kept: where the upper end of the bootstrap is at most 1, and no quality falls.

    It is compared with the best on these very pairs of `untuned`, the best of the `cells` that were screened, which
    favours the untuned. None where no table that was tuned came so far: these are measured alone.
    """
    tables = [linear_of(table) for table in (*untuned, *([] if tuned is None else [tuned]))]
    errors = pairs.errors(tables)
    best = int(np.argmin(np.sqrt((errors[: len(untuned)] ** 2).mean(1))))
    before, after = errors[best], errors[-1]
    if tuned is None:
        verdict = f"untuned: nothing tuned was better on the held-out prompts than the best of {cells} untuned cells"
        return Checked(best, before, before, 1.0, False, verdict)
    upper = upper_ratio(after, before)
    ratio = float(np.sqrt((after**2).mean() / (before**2).mean()))
    rivals = f"the best here of {len(untuned)} that led {cells} untuned cells"
    found = f"{ratio:.2f} of the error of {rivals}, on {pairs.count} fresh pairs, at most {upper:.2f}"
    if not upper <= 1:
        verdict = f"untuned: tuned it would be {found}, which may be worse"
        return Checked(best, before, after, min(upper, LARGE), False, verdict)
    if quality is not None:
        scores = [float(np.mean(np.asarray(quality(table), dtype=np.float64))) for table in (untuned[best], tuned)]
        found += f"; quality {scores[1]:.3g} where it was {scores[0]:.3g}"
        if not scores[1] >= scores[0]:
            return Checked(best, before, after, upper, False, f"untuned: tuned it would be {found}, which is worse")
    return Checked(best, before, after, upper, True, f"tuned: {found}")
