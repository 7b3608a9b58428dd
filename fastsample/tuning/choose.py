"""Which candidate is kept: the simplest within a standard error of the best, and none that may be worse."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGE = 1e9
"""In place of infinity, which differences and JSON do not have."""
DRAWS = 10_000
LEVEL = 0.975
"""Of the bootstrap: one ratio in forty may lie above its upper end."""


def simplest(errors: Sequence[Array]) -> int:
    """The candidate to keep, of errors [P] each on the same pairs, the simplest first.

    The one-standard-error rule: the first whose mean square error is above that of the best by no more than the
    standard error of their difference, pair by pair.
    """
    squares = np.stack([np.minimum(own, LARGE) ** 2 for own in errors])
    best = int(np.argmin(squares.mean(1)))
    for index, own in enumerate(squares):
        differences = own - squares[best]
        error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
        if differences.mean() <= error:
            return index
    return best


def upper_ratio(tuned: Array, untuned: Array, seed: int = 0) -> float:
    """The upper end of the paired bootstrap of the ratio of root mean square errors, tuned to untuned.

    `tuned` and `untuned` are errors [P] of the same pairs. inf where a tuned one is not finite.
    """
    if not np.isfinite(tuned).all():
        return float("inf")
    drawn = np.random.default_rng(seed).integers(0, len(tuned), (DRAWS, len(tuned)))
    ratios = np.sqrt((tuned**2)[drawn].mean(1) / np.maximum((untuned**2)[drawn].mean(1), 1e-300))
    return float(np.quantile(ratios, LEVEL))
