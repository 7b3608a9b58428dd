"""Adams-Bashforth in `d(x / alpha) / d(sigma / alpha) = noise`: iPNDM and PLMS, and with the grid's own weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.base import Node
from fastsample.solvers.registry import solver
from fastsample.tables.interpolation import interpolation_weights
from fastsample.tables.row import Row, Weights, ddim_weights


@functools.cache
def adams_weights(order: int, beta: float = 1.0) -> tuple[float, ...]:
    """Weights of the newest `order` slopes on a uniform grid, newest first; they sum to 1.

    With `beta` < 1 those of GHVB (arXiv:2307.11118, tab. of coefficients), for slopes that are velocities
    `v_n = (1 - beta) v_{n-1} + beta noise_n`; beta = 1 is Adams-Bashforth.
    """
    b = beta
    rows = {
        1: (1.0,),
        2: (2 + b, -(2 - b)),
        3: (18 + 5 * b, -(24 - 8 * b), 6 - b),
        4: (46 + 9 * b, -(78 - 19 * b), 42 - 5 * b, -(10 - b)),
        5: (1650 + 251 * b, -(3420 - 646 * b), 2880 - 264 * b, -(1380 - 106 * b), 270 - 19 * b),
    }
    divisor = {1: 1.0, 2: 2 * b, 3: 12 * b, 4: 24 * b, 5: 720 * b}[order]
    return tuple(weight / divisor for weight in rows[order])


def variable_adams_weights(nodes: Sequence[Node], target: Node, order: int, beta: float = 1.0) -> tuple[float, ...]:
    """As :func:`adams_weights`, exact for polynomials of degree < `order` on the grid that `nodes` make.

    The velocity of the polynomial s^k is a mean of the `s_n^k`, and the weights make its step the integral of s^k.
    `nodes` are the evaluations that the velocity remembers (:func:`remembered`). With beta = 1 this is
    Adams-Bashforth for variable steps. Zero-SNR nodes (s = inf) must be left out.
    """
    source = nodes[-1]
    width = target.sbar - source.sbar
    points = [(node.sbar - source.sbar) / width for node in nodes]
    order = min(order, len(points))
    if beta == 1:
        return interpolation_weights(points[: -order - 1 : -1], [1 / (k + 1) for k in range(order)])
    powers = np.vander(np.asarray(points), order, increasing=True)
    system = _memory(len(points), order, beta) @ powers
    return tuple(np.linalg.solve(system.T, 1 / np.arange(1.0, order + 1)).tolist())


def remembered(beta: float) -> int:
    """How many slopes a velocity `v_n = (1 - beta) v_{n-1} + beta slope_n` holds: older ones weigh below 2^-60."""
    return 1 if beta == 1 else math.ceil(-60 * math.log(2) / math.log1p(-beta))


@functools.lru_cache
def _memory(slopes: int, velocities: int, beta: float) -> NDArray[np.float64]:
    """The newest velocities, newest first, as means of slopes, oldest first; the first velocity is its own slope."""
    age = np.arange(slopes)[::-1] - np.arange(velocities)[:, None]
    weights = np.where(age >= 0, beta * (1 - beta) ** np.maximum(age, 0), 0.0)
    weights[:, 0] /= beta
    return weights


def sigma_weights(source: Node, target: Node, slopes: Sequence[float]) -> Weights:
    """The step `x / alpha += (change of sigma / alpha) * sum_i slopes[i] history[i]`, slopes summing to 1."""
    if not source.has_signal:  # only a first step starts at zero SNR, where every slope is the newest one
        return ddim_weights(source, target)
    factor = target.sigma - target.alpha * source.sbar
    return Weights(target.alpha / source.alpha, history=tuple([factor * slope for slope in slopes]))


def sigma_row(source: Node, target: Node, slopes: Sequence[float], entry: Weights | None = None) -> Row:
    """The row of :func:`sigma_weights`, whose history holds noise predictions, or what `entry` makes of them."""
    return Row(source, target, sigma_weights(source, target, slopes), "noise", entry)


@solver(
    "plms",
    order=4,
    orders=(1, 2, 3, 4),
    space="noise",
    references=("arXiv:2202.09778",),
    limits=False,
    claims=lambda order: min(order, 2),
)
@solver(
    "ipndm",
    order=4,
    orders=(1, 2, 3, 4),
    space="noise",
    references=("arXiv:2204.13902",),
    limits=False,
    claims=lambda order: min(order, 2),
    summary="iPNDM: PLMS started with lower orders, which is how plms starts here",
)
def plms(nodes: Sequence[Node], target: Node, *, order: int = 4) -> Row:
    """Adams-Bashforth with fixed weights, orders 1-4 (order 2 on grids not uniform in sigma / alpha)."""
    return sigma_row(nodes[-1], target, adams_weights(order))


@solver(
    "adams",
    order=3,
    orders=(1, 2, 3, 4, 5),
    space="noise",
    references=("arXiv:2204.13902",),
    limits=False,
    claims=lambda order: min(order, 2),  # its first step is of order 1
)
def adams(nodes: Sequence[Node], target: Node, *, order: int = 3) -> Row:
    """Adams-Bashforth with the weights of the actual grid (DEIS in sigma / alpha, rho-AB), orders 1-5."""
    known = [node for node in nodes[-order:] if node.has_signal]
    if not known:
        return sigma_row(nodes[-1], target, (1.0,))
    return sigma_row(nodes[-1], target, variable_adams_weights(known, target, order))
