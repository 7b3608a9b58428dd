"""What the DPM-Solver families share: a step of the exponential integrator, in noise or data form.

`x_t = X x + sum_i k_i f_i` with `f` the noise ("dpm") or data ("dpmpp") prediction and h = lam_t - lam_s:

    noise: X = alpha_t / alpha_s, A = sigma_t, sign = -1    data: X = sigma_t / sigma_s, A = alpha_t, sign = +1

The k are written with A times the phi functions of z = -sign h; see arXiv:2206.00927 and 2211.01095.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastsample.schedules.base import Node
from fastsample.solvers.registry import log_step
from fastsample.tables.phi import phi
from fastsample.tables.prediction import Space

FAMILIES: dict[Space, tuple[str, str, str]] = {
    "noise": ("dpm", "DPM-Solver", "arXiv:2206.00927"),
    "data": ("dpmpp", "DPM-Solver++", "arXiv:2211.01095"),
}
"""Name, title and reference of each form."""
SOLVER_TYPES = ("midpoint", "heun")


@dataclass(frozen=True)
class ExponentialStep:
    """The coefficients of a step from `source` to `target` in `space`."""

    source: Node
    target: Node
    space: Space

    @property
    def h(self) -> float:
        return log_step(self.source, self.target)

    @property
    def sample(self) -> float:
        """X: what the sample is multiplied with."""
        if self.space == "data":
            return self.target.sigma / self.source.sigma
        return self.target.alpha / self.source.alpha

    @property
    def constant(self) -> float:
        """-A phi1: the exact integral of a constant prediction."""
        return self._scale * self.h * phi(1, self._z)

    @property
    def slope(self) -> float:
        """sign A phi2: of a prediction that grows as (lam - lam_s) / h."""
        return self._scale * self.h * phi(2, self._z)

    @property
    def curvature(self) -> float:
        """-A phi3: half the integral of ((lam - lam_s) / h)^2."""
        return self._scale * self.h * phi(3, self._z)

    @property
    def _scale(self) -> float:
        return self.target.alpha if self.space == "data" else -self.target.sigma

    @property
    def _z(self) -> float:
        return -self.h if self.space == "data" else self.h
