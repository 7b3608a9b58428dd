"""Extended reverse-time SDE solvers (Cui et al. 2023, arXiv:2309.06169): a family of SDEs with one ODE's marginals.

In L = sigma / alpha, with a noise scale f(L) = L g(L) and data predictions that are polynomials of L,

    x_t / alpha_t = r x_s / alpha_s + (1 - r) D + sum_k w_k D^(k) + L_t sqrt(1 - (g_t / g_s)^2) z,   r = f_t / f_s
    w_k = (L_t - L_s)^k / k! + f_t int_{L_t}^{L_s} (L - L_s)^(k - 1) / (k - 1)! dL / f(L)

g = 1 is the probability-flow ODE and g = L^eta a reverse SDE; the paper's own is g = exp(L^0.3) + 10.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from fastsample.schedules.base import Array, Node
from fastsample.solvers.registry import check_choice, check_eta, solver
from fastsample.tables.row import Row, Weights

SCALES = ("er-sde", "sde", "ode")
INTEGRALS = ("exact", "riemann")
POINTS = 200  # of the Riemann sum, from the cleaner end


def log_scale(level: Array, scale: str, eta: float) -> Array:
    """log g at L = `level`; inf at zero SNR, but for the ODE."""
    if scale == "er-sde":
        return np.asarray(np.logaddexp(level**0.3, math.log(10.0)))
    return eta * np.log(level) if scale == "sde" else np.zeros_like(level)


@functools.cache
def gauss_legendre() -> tuple[Array, Array]:
    """64 points in [0, 1] and their weights, exact to rounding for integrands as smooth as these."""
    points, weights = np.polynomial.legendre.leggauss(64)
    return (points + 1) / 2, weights / 2


def integrals(source: Node, target: Node, scale: str, eta: float, integral: str) -> tuple[float, float]:
    """f_t int dL / f and f_t int (L - L_s) dL / f, from L_t to L_s."""
    end, start = target.sbar, source.sbar
    if integral == "riemann":
        levels = end + np.arange(POINTS) / POINTS * (start - end)
        widths = (start - end) / POINTS / levels
    else:
        parts, shares = gauss_legendre()
        levels = end * (start / end) ** parts  # dL / L is uniform
        widths = shares * math.log(start / end)
    own = log_scale(np.array(end), scale, eta)
    values = end * widths * np.exp(own - log_scale(levels, scale, eta))
    return float(values.sum()), float((values * (levels - start)).sum())


@solver(
    "er-sde",
    order=3,
    orders=(1, 2, 3),
    space="data",
    references=("arXiv:2309.06169",),
    claims=lambda order: min(order, 1),
    longest=(math.inf, math.inf, 0.5),
)
def er_sde(
    nodes: Sequence[Node],
    target: Node,
    *,
    order: int = 3,
    scale: str = "er-sde",
    eta: float = 1.0,
    integral: str = "exact",
) -> Row:
    """Extended reverse-time SDE, orders 1-3: stochastic, one model call a step.

    `scale` "er-sde" is the paper's own noise, "sde" `eta` times that of the reverse SDE, "ode" none. `integral`
    "riemann" is the released left sum over 200 points, up to 1e-3 off the "exact" one.
    """
    check_choice("scale", scale, SCALES)
    check_choice("integral", integral, INTEGRALS)
    check_eta(eta)
    source = nodes[-1]
    ratio = 0.0  # g_t / g_s
    if target.sigma > 0 and (source.alpha > 0 or scale == "ode"):
        ends = log_scale(np.array([target.sbar, source.sbar if source.alpha > 0 else 1.0]), scale, eta)
        ratio = math.exp(ends[0] - ends[1])
    sample = target.sigma / source.sigma * ratio
    noise = target.sigma * math.sqrt(1 - ratio**2)
    constant = target.alpha - source.alpha * sample
    levels = [node.sbar for node in nodes[: -order - 1 : -1] if node.alpha > 0]
    if order == 1 or len(levels) < 2:
        return Row(source, target, Weights(sample, data=constant, noise=noise))
    first, second = integrals(source, target, scale, eta, integral)
    change = target.sbar - source.sbar
    slope = target.alpha * (change + first) / (levels[0] - levels[1])  # of the last difference
    history = [constant + slope, -slope]
    if len(levels) == 3:
        bend = target.alpha * (change**2 / 2 + second) * 2 / (levels[0] - levels[2])
        newer, older = bend / (levels[0] - levels[1]), bend / (levels[1] - levels[2])
        history = [constant + slope + newer, -slope - newer - older, older]
    return Row(source, target, Weights(sample, history=tuple(history), noise=noise))
