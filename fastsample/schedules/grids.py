"""Time grids by name: where along a noise schedule the model is evaluated.

A grid function returns `steps` evaluation times, noisy to clean; :func:`time_grid` appends the final time.
Adding a grid is adding one function to :data:`GRIDS`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastsample.schedules.base import Array, NoiseSchedule

Grid = Callable[[NoiseSchedule, int], Array]
"""`(schedule, steps) -> times`, `steps` of them, noisy to clean."""


def linspace(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in time from the noisiest to the first training time, which is left out (arXiv:2305.08891, tab. 2)."""
    return np.linspace(schedule.noise_time, schedule.first_time, steps + 1)[:-1]


def leading(schedule: NoiseSchedule, steps: int) -> Array:
    """Whole multiples of `train_steps // (steps + 1)`, without 0, as diffusers' multistep schedulers."""
    if not schedule.train_steps:
        return linspace(schedule, steps)
    return np.arange(steps, 0, -1, dtype=np.float64) * (schedule.train_steps // (steps + 1))


def trailing(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in time, always from the noisiest time (arXiv:2305.08891, tab. 2)."""
    if schedule.kind == "vp" and schedule.train_steps:
        return schedule.train_steps * np.arange(steps, 0, -1, dtype=np.float64) / steps - 1.0
    return np.linspace(schedule.noise_time, schedule.clean_time, steps + 1)[:-1]


def quadratic(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in the square root of time (DDIM, arXiv:2010.02502, app. D.2): dense near clean data."""
    ramp = np.linspace(1.0, 0.0, steps + 1)[:-1]
    return schedule.first_time + (schedule.noise_time - schedule.first_time) * ramp**2


def karras(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> Array:
    """Uniform in `(sigma / alpha)^(1 / rho)` (EDM, arXiv:2206.00364, eq. 5)."""
    noisy, clean = _sbar_range(schedule)
    ramp = np.linspace(0.0, 1.0, steps)
    return _times_of_sbar(schedule, (noisy ** (1 / rho) + ramp * (clean ** (1 / rho) - noisy ** (1 / rho))) ** rho)


def exponential(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in log-SNR over the training range (k-diffusion's exponential; DPM-Solver's and Lu's logSNR)."""
    noisy, clean = _sbar_range(schedule)
    return _times_of_sbar(schedule, np.exp(np.linspace(np.log(noisy), np.log(clean), steps)))


def log_snr(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in log-SNR with the end of the training range as the final time (DPM-Solver, arXiv:2206.00927)."""
    return exponential(schedule, steps + 1)[:-1]


def beta(schedule: NoiseSchedule, steps: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Beta(0.6, 0.6) quantiles of the noise level (arXiv:2407.12173)."""
    from scipy.stats import beta as distribution

    noisy, clean = _sbar_range(schedule)
    quantiles = distribution.ppf(1.0 - np.linspace(0.0, 1.0, steps), a, b)
    return _times_of_sbar(schedule, clean + quantiles * (noisy - clean))


def uniform_sigma(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in `sigma / alpha`: the grid on which fixed Adams-Bashforth weights keep their order."""
    noisy, clean = _sbar_range(schedule)
    return _times_of_sbar(schedule, np.linspace(noisy, clean, steps + 1)[:-1])


GRIDS: dict[str, Grid] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "karras": karras,
    "exponential": exponential,
    "lu": exponential,
    "log-snr": log_snr,
    "beta": beta,
    "uniform-sigma": uniform_sigma,
}


def time_grid(name: str, schedule: NoiseSchedule, steps: int, *, final: str = "zero") -> Array:
    """`steps` evaluation times of grid `name` and the final time: `steps + 1` float64 times, noisy to clean.

    `final` is "zero" (clean data, sigma = 0) or "sigma_min" (the least noisy training time; there a last
    evaluation time that coincides with it is not repeated, so that such a grid has one step less).
    Raises ValueError for an unknown name or final, or steps < 1.
    """
    check_steps(steps, "steps")
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final = {final!r}: use 'zero' or 'sigma_min'")
    times = evaluation_times(name, schedule, steps)
    last = schedule.clean_time if final == "zero" else min_time(schedule)
    times = times[times > last + 1e-9 * schedule.noise_time]
    return np.append(times, last)


def evaluation_times(name: str, schedule: NoiseSchedule, steps: int) -> Array:
    """The `steps` times of grid `name` at which the model is evaluated."""
    if name not in GRIDS:
        raise ValueError(f"grid = {name!r} is unknown: use one of {', '.join(GRIDS)}")
    return GRIDS[name](schedule, steps)


def check_steps(steps: object, argument: str) -> None:
    """Raise ValueError unless `steps` is an integer of at least 1."""
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{argument} = {steps!r}: give an integer of at least 1")


def min_time(schedule: NoiseSchedule) -> float:
    """The least noisy time of training that still has noise (1e-3 of the range where training had sigma = 0)."""
    if schedule.first_time > schedule.clean_time:
        return schedule.first_time
    return schedule.clean_time + 1e-3 * (schedule.noise_time - schedule.clean_time)


def noisiest_time(schedule: NoiseSchedule) -> float:
    """The noisiest time with any signal; from zero SNR the one where sigma / alpha is 4096, as in diffusers."""
    if float(schedule.alpha(schedule.noise_time)) < 2**-12:
        return float(schedule.time(-12 * np.log(2.0)))
    return schedule.noise_time


def _sbar_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """sigma / alpha at the noisiest time with any signal, and at `min_time`."""
    noisy = np.exp(-schedule.lam(noisiest_time(schedule)))
    return float(noisy), float(np.exp(-schedule.lam(min_time(schedule))))


def _times_of_sbar(schedule: NoiseSchedule, sbar: Array) -> Array:
    return schedule.time(-np.log(sbar))
