"""Weights of linear multistep rules from what they must integrate exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def interpolation_weights(points: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """The w with `sum_i w[i] points[i]^k = moments[k]` for k = 0 .. n - 1: the rule exact for polynomials.

    With `moments[k]` the weighted integral of `x^k`, the integral of the Lagrange interpolant through `points`.
    """
    system = np.vander(np.asarray(points, dtype=np.float64), increasing=True).T
    return tuple(np.linalg.solve(system, np.asarray(moments, dtype=np.float64)).tolist())
