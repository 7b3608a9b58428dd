"""The continuous variance-preserving schedule with a linear beta(t)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastsample.schedules.base import Array, NoiseSchedule


class LinearVPSchedule(NoiseSchedule):
    """log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, t in [0, 1] (arXiv:2011.13456)."""

    kind = "vp"
    clean_time = 0.0
    first_time = 0.0
    noise_time = 1.0
    train_steps = 0

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"beta_min, beta_max = {beta_min}, {beta_max}: need 0 < beta_min < beta_max")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def _log_alpha(self, t: ArrayLike) -> Array:
        t = np.asarray(t, dtype=np.float64)
        return -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2

    def alpha(self, t: ArrayLike) -> Array:
        return np.asarray(np.exp(self._log_alpha(t)), dtype=np.float64)

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(np.sqrt(-np.expm1(2 * self._log_alpha(t))), dtype=np.float64)

    def time(self, lam: ArrayLike) -> Array:
        minus_log_alpha = 0.5 * np.logaddexp(0.0, -2.0 * np.asarray(lam, dtype=np.float64))
        slope = self.beta_max - self.beta_min
        # The stable root of slope t^2 / 4 + beta_min t / 2 = -log alpha.
        root = np.sqrt(self.beta_min**2 + 4 * slope * minus_log_alpha)
        return np.asarray(4 * minus_log_alpha / (self.beta_min + root), dtype=np.float64)
