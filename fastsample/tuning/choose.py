"""How much worse than the untuned a tuned table may be."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGE = 1e9
"""In place of infinity, which differences and JSON do not have."""
DRAWS = 10_000
LEVEL = 0.975
"""Of the bootstrap: one ratio in forty may lie above its upper end."""


def upper_ratio(tuned: Array, untuned: Array, seed: int = 0) -> float:
    """The upper end of the paired bootstrap of the ratio of root mean square errors, tuned to untuned.

    `tuned` and `untuned` are errors [P] of the same pairs. inf where a tuned one is not finite.
    """
    if not np.isfinite(tuned).all():
        return float("inf")
    drawn = np.random.default_rng(seed).integers(0, len(tuned), (DRAWS, len(tuned)))
    ratios = np.sqrt((tuned**2)[drawn].mean(1) / np.maximum((untuned**2)[drawn].mean(1), 1e-300))
    return float(np.quantile(ratios, LEVEL))
