"""The phi functions of exponential integrators, exact near zero.

`phi_k(z) = (phi_{k-1}(z) - 1 / (k - 1)!) / z`, `phi_0 = exp`. By subtraction they lose all digits near 0,
so a Taylor series is used below |z| = 0.5.
"""

from __future__ import annotations

import math


def phi(k: int, z: float) -> float:
    """phi_k(z), k >= 0. At z = -inf the limit: 0 for every k (and at +inf: inf)."""
    if k < 0:
        raise ValueError(f"k = {k}: phi functions are numbered from 0")
    if z == -math.inf:
        return 0.0
    if abs(z) < 0.5 and k > 0:
        return sum(z**j / math.factorial(j + k) for j in range(18))
    value = math.exp(z) if z < 700 else math.inf
    for j in range(k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value
