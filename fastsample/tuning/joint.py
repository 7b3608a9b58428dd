"""Grid and weights of a table, tuned together by damped least squares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastsample.tuning.grid import Base, ordered
from fastsample.tuning.linear import Linear, with_sums
from fastsample.tuning.newton import Family
from fastsample.tuning.rows import free_weights

Array = NDArray[np.float64]
MOVED = 0.03
"""By how much a weight is moved to see its effect; the samples are linear in those of the last row."""
RIDGES = (1e-2, 1e-3, 1e-4)
"""How strongly weights are held to the solver's own, relative to the mean curvature. Each goes on from the best
of the one before."""


def joint_family(base: Base, count: int, difference: float) -> Family:
    """Tables of `count` evaluations by their inner log-SNRs, then by what their weights differ by from `base`'s."""
    grid, free = count - 1, free_weights(count)

    def build(values: Array) -> Linear:
        linear = base.at(values[:grid])
        weights = linear.weights.copy()
        for (row, column), change in zip(free, values[grid:], strict=True):
            weights[row, column] += change
        return with_sums(Linear(linear.nodes, weights))

    return Family(
        build,
        (*range(1, count), *(row + 1 for row, _ in free)),
        np.array([difference] * grid + [max(MOVED, difference)] * len(free)),
        np.array([0.0] * grid + [1.0] * len(free)),
        ordered(base.problem, grid),
    )


def changes(linear: Linear, base: Linear) -> Array:
    """What the tuned weights of `linear` differ by from those of `base` on the same grid."""
    return np.array([linear.weights[place] - base.weights[place] for place in free_weights(linear.count)])
