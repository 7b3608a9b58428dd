"""The phi functions of exponential integrators, exact near zero.

`phi_k(z) = (phi_{k-1}(z) - 1 / (k - 1)!) / z`, `phi_0 = exp`. By subtraction they lose all digits near 0, so a
Taylor series is used below |z| = 1.
"""

from __future__ import annotations

import functools
import math

TERMS = 19  # z^19 / 19! is below the last digit for |z| < 1


def phi(k: int, z: float) -> float:
    """phi_k(z) for k >= 0, and its limits for every k: 0 at z = -inf; inf at +inf and where no float is so large."""
    if k < 0:
        raise ValueError(f"k = {k}: phi functions are numbered from 0")
    if abs(z) < 1 and k > 0:
        value = 0.0
        for coefficient in _taylor(k):
            value = value * z + coefficient
        return value
    if z > 700:  # e^z / z^k, to the last digit; e^z alone would overflow first
        exponent = z - k * math.log(z) if z < math.inf else z
        return math.exp(exponent) if exponent < 709 else math.inf
    value = math.exp(z)
    for j in range(k):
        value = (value - 1.0 / math.factorial(j)) / z
    return value


@functools.cache
def _taylor(k: int) -> tuple[float, ...]:
    """1 / (j + k)!, the highest power of z first."""
    return tuple(1.0 / math.factorial(j + k) for j in range(TERMS - 1, -1, -1))
