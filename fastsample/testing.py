"""Help for testing a solver or scheduler: models whose exact samples are known, and the measured order of a solver.

`gaussian_spread(table, std)` tells what a table makes of Gaussian data, without running it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.demo.mixture import GaussianMixture
from fastsample.sampling import integrate
from fastsample.schedules import NoiseSchedule
from fastsample.solvers import build_table, get_solver
from fastsample.tables.gaussian import gaussian_output, gaussian_spread
from fastsample.tables.table import output_of

__all__ = ["exact_model", "gaussian_model", "gaussian_spread", "measured_order", "run_scheduler"]


def exact_model(
    clean: Tensor, schedule: NoiseSchedule, prediction_type: str = "epsilon"
) -> Callable[[Tensor, float | Tensor], Tensor]:
    """The `model(x, t)` that knows the data: its every prediction points at `clean`. Any sampler must end there."""

    def predict(x: Tensor, t: float | Tensor) -> Tensor:
        node = schedule.node(float(t))
        output: Tensor = output_of(node, prediction_type, clean, (x - node.alpha * clean) / node.sigma)
        return output

    return predict


def gaussian_model(
    std: float, schedule: NoiseSchedule, prediction_type: str = "epsilon"
) -> Callable[[Tensor, float | Tensor], Tensor]:
    """The exact `model(x, t)` of N(0, std^2) data. What a sampler makes of it can be computed, see `gaussian_spread`.

    `std` is that of the schedule's `data`: on EDM models of the samples divided by sigma_data.
    """

    def predict(x: Tensor, t: float | Tensor) -> Tensor:
        return gaussian_output(schedule.node_of(float(t)), prediction_type, std) * x

    return predict


def run_scheduler(
    scheduler: Any, model: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int | None, **grid: Any
) -> Tensor:
    """`x` at the scheduler's first timestep taken through all its steps. `grid` goes to `set_timesteps`.

    Noise comes from a generator seeded 0; `model(x, t)` sees the sample as the scheduler scales it.
    """
    scheduler.set_timesteps(steps, **grid)
    generator = torch.Generator().manual_seed(0)
    keywords = {"generator": generator} if scheduler_takes_generator(scheduler) else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(seen, t), t, x, return_dict=False, **keywords)[0]
    return x


def scheduler_takes_generator(scheduler: Any) -> bool:
    """Whether `step` has the argument, as pipelines ask."""
    return "generator" in inspect.signature(scheduler.step).parameters


def measured_order(
    solver: str,
    schedule: NoiseSchedule,
    *,
    steps: tuple[int, ...] = (48, 96, 192),
    mixture: GaussianMixture | None = None,
    **options: Any,
) -> float:
    """The order of convergence of `solver` on a smooth mixture, from halved steps, against SciPy's DOP853.

    The grid is uniform in sigma / alpha where the solver's weights assume that (no order reduction onto
    sigma = 0), else in log-SNR; the largest slope between neighbouring step counts is returned, since the
    coarser ones may not have reached the asymptotic range.
    """
    mixture = mixture or _smooth_mixture()
    prediction = "flow_prediction" if schedule.kind == "flow" else "epsilon"
    start, end = (0.7, 0.2) if schedule.kind == "flow" else (0.5, 0.1)
    x, exact = _solution(mixture, schedule, start, end)
    errors = []
    for count in steps:
        times = _smooth_grid(schedule, start, end, count, uniform_sigma=not get_solver(solver).limits)
        table = build_table(solver, schedule, times, prediction_type=prediction, **options)
        result = integrate(table, mixture.model(schedule, prediction), x)
        errors.append(float((result - exact).square().mean().sqrt()))
    return float(np.log2(np.array(errors[:-1]) / np.array(errors[1:])).max())


@functools.cache
def _smooth_mixture() -> GaussianMixture:
    return GaussianMixture.random(components=3, dims=2, std=0.6, seed=1)


@functools.lru_cache(maxsize=8)
def _solution(mixture: GaussianMixture, schedule: NoiseSchedule, start: float, end: float) -> tuple[Tensor, Tensor]:
    """64 samples at time `start`, and where the exact ODE has taken them at `end`."""
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = float(schedule.alpha(start)) * mixture.sample(64) + float(schedule.sigma(start)) * noise
    return x, mixture.integrate(schedule, x, start, end, 1e-12)


def _smooth_grid(schedule: NoiseSchedule, start: float, end: float, steps: int, uniform_sigma: bool) -> Any:
    """`steps + 1` times from `start` to `end`, uniform in sigma / alpha or in log-SNR."""
    first, last = schedule.lam([start, end]).tolist()
    if uniform_sigma:
        lam = -np.log(np.linspace(np.exp(-first), np.exp(-last), steps + 1))
    else:
        lam = np.linspace(first, last, steps + 1)
    times = schedule.time(lam)
    times[[0, -1]] = start, end
    return times
