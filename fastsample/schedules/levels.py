"""Grids placed by noise level: how levels are spaced between the noisiest and the cleanest one.

A level is sigma / alpha, as in k-diffusion. Where that has no end, on flow models and from zero SNR, it is
sigma / (alpha + sigma), which on flow models is sigma itself and runs from 1 (pure noise) down: the scale on which
diffusers' FlowMatchEulerDiscreteScheduler lays out its karras, exponential and beta sigmas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastsample.schedules.base import CAPPED, Array, NoiseSchedule
from fastsample.schedules.published import AYS_SD15, AYS_SDXL, AYS_SVD


@dataclass(frozen=True)
class Levels:
    """The range of a grid: its first and its last level.

    With `fraction` they are sigma / (alpha + sigma), else sigma / alpha. `second` is where the model's own first
    step ends: the log-SNR of pure noise is infinite, so grids in log-SNR begin there after a first step from noise.
    """

    noisy: float
    clean: float
    second: float
    fraction: bool = False

    def ratio(self, levels: Array) -> Array:
        """sigma / alpha of `levels`; inf for pure noise."""
        if not self.fraction:
            return levels
        with np.errstate(divide="ignore"):
            return levels / (1.0 - levels)


Spacing = Callable[..., Array]
"""`(levels, steps, **options) -> levels`, `steps` of them from noisy to clean."""


def karras(levels: Levels, steps: int, rho: float = 7.0) -> Array:
    """Uniform in the level to the power 1 / rho (EDM, arXiv:2206.00364, eq. 5)."""
    first, last = levels.noisy ** (1 / rho), levels.clean ** (1 / rho)
    return np.asarray((first + np.linspace(0.0, 1.0, steps) * (last - first)) ** rho)


def exponential(levels: Levels, steps: int, rho: float = 1.0) -> Array:
    """Uniform in the logarithm of the level to the power 1 / rho (k-diffusion's exponential, polyexponential)."""
    first, last = np.log(levels.noisy), np.log(levels.clean)
    return np.asarray(np.exp(last + np.linspace(1.0, 0.0, steps) ** rho * (first - last)))


def beta(levels: Levels, steps: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Beta(a, b) quantiles of the level (arXiv:2407.12173)."""
    from scipy.stats import beta as distribution  # heavy

    quantiles = distribution.ppf(1.0 - np.linspace(0.0, 1.0, steps), a, b)
    return np.asarray(levels.clean + quantiles * (levels.noisy - levels.clean))


def uniform_sigma(levels: Levels, steps: int) -> Array:
    """Uniform in the level; in sigma / alpha the grid on which fixed Adams-Bashforth weights keep their order."""
    if levels.fraction:
        return np.linspace(levels.noisy, levels.clean, steps)
    return np.linspace(levels.noisy, levels.clean, steps + 1)[:-1]


def lu(levels: Levels, steps: int) -> Array:
    """Uniform in log-SNR, both ends included (diffusers' `use_lu_lambdas`)."""
    return _in_log_snr(levels, steps, lambda count: np.linspace(0.0, 1.0, count))


def log_snr(levels: Levels, steps: int) -> Array:
    """Uniform in log-SNR; in sigma / alpha the cleanest level is the end (DPM-Solver, arXiv:2206.00927)."""
    if levels.fraction:
        return lu(levels, steps)
    return _in_log_snr(levels, steps, lambda count: np.linspace(0.0, 1.0, count + 1)[:-1])


def kl_optimal(levels: Levels, steps: int) -> Array:
    """Uniform in arctan(sigma / alpha), optimal for Gaussian data (Align Your Steps, arXiv:2404.14507, thm. 3.1)."""
    if not levels.fraction:
        return np.tan(np.linspace(np.arctan(levels.noisy), np.arctan(levels.clean), steps))
    first, last = (np.arctan2(level, 1.0 - level) for level in (levels.noisy, levels.clean))
    angles = np.linspace(first, last, steps)
    return np.asarray(np.sin(angles) / (np.sin(angles) + np.cos(angles)))


def published_levels(published: Sequence[float], levels: Levels, steps: int) -> Array:
    """Levels optimised for one model and number of steps (AYS, GITS); for others log-linear between them.

    The published levels are stretched in log(sigma / alpha) to the range, which on that model changes nothing. The
    last of them is where its sampling ends; where a range ends with an evaluation (`fraction`), it is left out.
    """
    points = np.log(published[:-1] if levels.fraction else published)
    parts = (points - points[0]) / (points[-1] - points[0])
    places = np.arange(len(points))

    def spread(count: int) -> Array:
        where = np.linspace(0, places[-1], count + (not levels.fraction))[:count]
        return np.asarray(np.interp(where, places, parts))

    return _in_log_snr(levels, steps, spread)


LEVEL_GRIDS: dict[str, Spacing] = {
    "karras": karras,
    "exponential": exponential,
    "lu": lu,
    "log-snr": log_snr,
    "beta": beta,
    "uniform-sigma": uniform_sigma,
    "kl-optimal": kl_optimal,
    "ays-sd15": partial(published_levels, AYS_SD15),
    "ays-sdxl": partial(published_levels, AYS_SDXL),
    "ays-svd": partial(published_levels, AYS_SVD),
}
RATIO_GRIDS = ("karras", "exponential", "lu", "log-snr")
"""Those that diffusers and ComfyUI lay out in sigma / alpha from zero SNR too, capped; the others would collapse."""


def levels_of(schedule: NoiseSchedule, steps: int, name: str) -> Levels:
    """The range of the level grid `name` on `schedule`: its noisiest time and the least noisy one with noise."""
    capped = name in RATIO_GRIDS or float(schedule.alpha(schedule.noise_time)) >= 1 / CAPPED
    if schedule.kind != "flow" and capped:
        noisy, clean = np.exp(-schedule.lam([noisiest_time(schedule), min_time(schedule)])).tolist()
        return Levels(noisy, clean, clean)
    second = np.linspace(schedule.noise_time, min_time(schedule), max(steps, 2))[1]
    lam = schedule.lam([schedule.noise_time, min_time(schedule), second])
    noisy, clean, second = (1.0 / (1.0 + np.exp(lam))).tolist()
    return Levels(noisy, clean, second, fraction=True)


def times_of_levels(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> Array:
    """The `steps` times at which the level grid `name` evaluates the model."""
    levels = levels_of(schedule, steps, name)
    return times_at(schedule, levels.ratio(LEVEL_GRIDS[name](levels, steps, **options)))


def times_at(schedule: NoiseSchedule, ratios: Array) -> Array:
    """The times at which sigma / alpha is `ratios`, which may begin at inf; none beyond training by rounding."""
    with np.errstate(divide="ignore"):
        times = schedule.time(-np.log(ratios))
    return np.where(np.isinf(ratios), schedule.noise_time, times)


def min_time(schedule: NoiseSchedule) -> float:
    """The least noisy time of training that still has noise (1e-3 of the range where training had sigma = 0)."""
    if schedule.first_time > schedule.clean_time:
        return schedule.first_time
    return schedule.clean_time + 1e-3 * (schedule.noise_time - schedule.clean_time)


def noisiest_time(schedule: NoiseSchedule) -> float:
    """The noisiest time with any signal; from zero SNR the one where sigma / alpha is 4096, as in diffusers."""
    if float(schedule.alpha(schedule.noise_time)) < 1 / CAPPED:
        return float(schedule.time(-np.log(CAPPED)))
    return schedule.noise_time


def _in_log_snr(levels: Levels, steps: int, spread: Callable[[int], Array]) -> Array:
    """Levels at the parts `spread(count)` (0 noisy, 1 clean) of the range of log(sigma / alpha).

    On a range that begins at pure noise the first step is the model's own, and the parts are of what is left.
    """
    if not levels.fraction:
        return np.asarray(levels.noisy * (levels.clean / levels.noisy) ** spread(steps))
    if steps == 1:
        return np.array([levels.noisy])
    first, last = (np.log1p(-level) - np.log(level) for level in (levels.second, levels.clean))
    return np.append(levels.noisy, 1.0 / (1.0 + np.exp(first + spread(steps - 1) * (last - first))))
