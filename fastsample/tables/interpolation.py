"""Weights of linear multistep rules from what they must integrate exactly."""

from __future__ import annotations

from collections.abc import Sequence


def interpolation_weights(points: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """The w with `sum_i w[i] points[i]^k = moments[k]` for k = 0 .. n - 1: the rule exact for polynomials.

    With `moments[k]` the weighted integral of `x^k`, the integral of the Lagrange interpolant through `points`,
    which must differ from each other. By divided differences (Bjorck and Pereyra 1970), which lose fewer digits than
    elimination does on this system.
    """
    weights, count = list(moments), len(points)
    for k in range(count - 1):
        for i in range(count - 1, k, -1):
            weights[i] -= points[k] * weights[i - 1]
    for k in range(count - 2, -1, -1):
        for i in range(k + 1, count):
            weights[i] /= points[i] - points[i - k - 1]
        for i in range(k, count - 1):
            weights[i] -= weights[i + 1]
    return tuple(weights)
