"""Tables run in NumPy, and a solver's order measured so: as fastsample.testing does in torch, but loading none."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from fastsample.schedules import NoiseSchedule
from fastsample.schedules.base import Array, Node
from fastsample.solvers import build_table, get_solver
from fastsample.tables import Table
from fastsample.tables.lower import advance
from fastsample.tables.table import output_of

MEANS = np.array([[0.66, 0.27], [0.06, 0.62], [-0.45, -0.17]])
VARIANCE = 0.6**2


def run(table: Table, model: Callable[[Any, Node], Any], x: Any, draw: Callable[[], Any] = lambda: 0.0) -> Any:
    """`x` at the first time taken through all steps of `table`; `draw` makes each step's noise."""
    stored = table.lowered.empty
    for step, lowered in zip(table.steps, table.lowered.steps, strict=True):
        x, stored = advance(lowered, x, model(x, step.node), stored, draw())
    return x


def data_prediction(x: Array, alpha: float, sigma: float) -> Array:
    """E[data | x], x [n, 2] = alpha data + sigma noise, of the three Gaussians at MEANS, equally likely."""
    variance = alpha**2 * VARIANCE + sigma**2
    logits = (alpha * (x @ MEANS.T) - alpha**2 / 2 * np.square(MEANS).sum(1)) / variance
    posterior = np.exp(logits - logits.max(1, keepdims=True))
    posterior /= posterior.sum(1, keepdims=True)
    gain = alpha * VARIANCE / variance
    centres: Array = gain * x + (1 - gain * alpha) * (posterior @ MEANS)
    return centres


def measured_order(
    solver: str, schedule: NoiseSchedule, *, steps: tuple[int, ...], enough: float = math.inf, **options: Any
) -> float:
    """The largest slope of the error between neighbouring step counts, or the first that is `enough`.

    At samples of the mixture. The grid is uniform in sigma / alpha where the solver's weights assume that, else in
    log-SNR.
    """
    prediction, start, end = ("flow_prediction", 0.7, 0.2) if schedule.kind == "flow" else ("epsilon", 0.5, 0.1)
    x, exact = solution(schedule, start, end)

    def model(x: Array, node: Node) -> Any:
        data = data_prediction(x, node.alpha, node.sigma)
        return output_of(node, prediction, data, (x - node.alpha * data) / node.sigma)

    slope, previous = -math.inf, math.nan
    for count in steps:
        times = smooth_grid(schedule, start, end, count, uniform_sigma=not get_solver(solver).limits)
        table = build_table(solver, schedule, times, prediction_type=prediction, **options)
        error = float(np.sqrt(np.square(run(table, model, x) - exact).mean()))
        if count != steps[0]:
            slope = max(slope, math.log2(previous / error))
        if slope >= enough:
            break
        previous = error
    return slope


@functools.cache
def solution(schedule: NoiseSchedule, start: float, end: float) -> tuple[Array, Array]:
    """64 samples at time `start`, and where the exact ODE has taken them at `end`.

    With y = x / (alpha + sigma) and u = sigma / (alpha + sigma) it is dy/du = noise - data.
    """
    rng = np.random.default_rng(0)
    data = MEANS[rng.integers(3, size=64)] + VARIANCE**0.5 * rng.normal(size=(64, 2))
    first, last = schedule.node(start), schedule.node(end)
    x = first.alpha * data + first.sigma * rng.normal(size=(64, 2))

    def slope(u: float, flat: Array) -> Array:
        y = flat.reshape(x.shape)
        return np.ravel((y - data_prediction(y, 1 - u, u)) / u)

    scale, end_scale = first.alpha + first.sigma, last.alpha + last.sigma
    span = first.sigma / scale, last.sigma / end_scale
    solved = solve_ivp(slope, span, x.ravel() / scale, "DOP853", rtol=1e-12, atol=1e-12)
    assert solved.success
    return x, solved.y[:, -1].reshape(x.shape) * end_scale


@functools.cache
def smooth_grid(schedule: NoiseSchedule, start: float, end: float, steps: int, uniform_sigma: bool) -> Array:
    """`steps + 1` times from `start` to `end`, uniform in sigma / alpha or in log-SNR."""
    first, last = schedule.lam([start, end])
    if uniform_sigma:
        lam = -np.log(np.linspace(np.exp(-first), np.exp(-last), steps + 1))
    else:
        lam = np.linspace(first, last, steps + 1)
    times = schedule.time(lam)
    times[[0, -1]] = start, end
    return times
