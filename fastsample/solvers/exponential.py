"""What the DPM-Solver families share: a step of the exponential integrator, in noise or data form.

`x_t = X x + sum_i k_i f_i` with `f` the noise ("dpm") or data ("dpmpp") prediction and h = lam_t - lam_s:

    noise: X = alpha_t / alpha_s, A = sigma_t, sign = -1    data: X = sigma_t / sigma_s, A = alpha_t, sign = +1

The k are written with A times the phi functions of z = -sign h; see arXiv:2206.00927 and 2211.01095. The reverse
SDE with `eta` times the noise of the forward process moves 1 + eta times as far along the prediction and adds
noise; eta = 0 is the ODE, eta = 1 the SDE of those papers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.registry import log_step
from fastsample.tables.interpolation import interpolation_weights
from fastsample.tables.phi import phi
from fastsample.tables.prediction import Space

FAMILIES: dict[Space, tuple[str, str, str]] = {
    "noise": ("dpm", "DPM-Solver", "arXiv:2206.00927"),
    "data": ("dpmpp", "DPM-Solver++", "arXiv:2211.01095"),
}
"""Name, title and reference of each form."""
SOLVER_TYPES = ("midpoint", "heun")


class ExponentialStep:
    """The coefficients of a step from `source` to `target` in `space`, of the ODE (`eta` 0) or a reverse SDE.

    `h` is the step's length in log-SNR, lam_t - lam_s; `constant` is -A phi1, the exact integral of a constant
    prediction.
    """

    def __init__(self, source: Node, target: Node, space: Space, eta: float = 0.0) -> None:
        self.source, self.target, self.space, self.eta = source, target, space, eta
        self.h = log_step(source, target)
        self.constant = self.moment(0)

    @property
    def sample(self) -> float:
        """X: what the sample is multiplied with."""
        if self.space == "data":
            ratio = self.target.sigma / self.source.sigma
            return ratio * math.exp(-self.eta * self.h) if self.eta else ratio
        return self.target.alpha / self.source.alpha

    @property
    def noise(self) -> float:
        """The standard deviation of the noise that the SDE adds."""
        if self.eta == 0:
            return 0.0
        if self.space == "data":
            return self.target.sigma * math.sqrt(-math.expm1(-2 * self.eta * self.h))
        return self.target.sigma * math.sqrt(self.eta * math.expm1(2 * self.h))

    @property
    def scale(self) -> float:
        """sign A."""
        return self.target.alpha if self.space == "data" else -self.target.sigma

    @property
    def slope(self) -> float:
        """sign A phi2: of a prediction that grows as (lam - lam_s) / h."""
        return self.moment(1)

    @property
    def curvature(self) -> float:
        """-A phi3: half the integral of ((lam - lam_s) / h)^2."""
        return self.moment(2) / 2

    def moment(self, k: int) -> float:
        """The exact integral of a prediction that grows as ((lam - lam_s) / h)^k."""
        if self.space == "data" and self.target.alpha == 0:  # the limit, where a grid rises to zero SNR
            return -self.source.alpha * self.target.sigma / self.source.sigma if k == 0 else 0.0
        if self.space == "data":
            length = (1 + self.eta) * self.h
            whole = -math.expm1(-length) if k == 0 else length * math.factorial(k) * phi(k + 1, -length)
            return self.target.alpha * whole
        if self.target.sigma == 0:  # the limit; of k = 0 alone
            return -(1 + self.eta) * self.target.alpha * self.source.sbar if k == 0 else math.nan
        return -(1 + self.eta) * self.target.sigma * self.h * math.factorial(k) * phi(k + 1, self.h)

    def adams(self, history: Sequence[Node]) -> tuple[float, ...]:
        """The weights, newest first, that integrate the polynomial in lam through `history` exactly.

        `history` are the evaluated nodes, oldest first, the source last.
        """
        points = [log_step(self.source, node) / self.h for node in reversed(history)]
        return interpolation_weights(points, [self.moment(k) for k in range(len(points))])
