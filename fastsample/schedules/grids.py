"""Time grids by name: where along a noise schedule the model is evaluated.

A grid function returns `steps` evaluation times, noisy to clean; :func:`time_grid` appends the final time.
Adding a grid is adding one function to :data:`GRIDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

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
    return np.linspace(schedule.noise_time, schedule.first_time, steps + 1)[:-1]


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


def normal(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in time over the training range, its end included (k-diffusion's `get_sigmas`, ComfyUI's "normal")."""
    return np.linspace(schedule.noise_time, min_time(schedule), steps)


def sgm_uniform(schedule: NoiseSchedule, steps: int) -> Array:
    """As "normal" with one step more, whose last time is left out (Stability's sgm, ComfyUI's "sgm_uniform")."""
    return normal(schedule, steps + 1)[:-1]


def simple(schedule: NoiseSchedule, steps: int) -> Array:
    """Every (train_steps / steps)-th training time, counted down from the noisiest (ComfyUI's "simple")."""
    if not schedule.train_steps:
        return linspace(schedule, steps)
    skipped = np.floor(np.arange(steps) * (schedule.train_steps / steps))
    return np.asarray(schedule.noise_time - skipped, dtype=np.float64)


def ddim_uniform(schedule: NoiseSchedule, steps: int) -> Array:
    """Every (train_steps // steps)-th training time, from the second up (LDM's DDIM, ComfyUI's "ddim_uniform").

    Where `steps` does not divide `train_steps` those programs may make a step more; here there are `steps`.
    """
    if not schedule.train_steps:
        return linspace(schedule, steps)
    first, apart = schedule.noise_time - schedule.train_steps + 2, max(schedule.train_steps // steps, 1)
    return np.asarray(np.minimum(first + np.arange(steps - 1, -1, -1) * apart, schedule.noise_time), dtype=np.float64)


def kl_optimal(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in arctan(sigma / alpha), optimal for Gaussian data (Align Your Steps, arXiv:2404.14507, thm. 3.1)."""
    noisy, clean = _sbar_range(schedule)
    return _times_of_sbar(schedule, np.tan(np.linspace(np.arctan(noisy), np.arctan(clean), steps)))


def linear_quadratic(schedule: NoiseSchedule, steps: int, threshold: float = 0.025) -> Array:
    """The noise level falls by `threshold` over the first half of the steps, then quadratically (Movie Gen, Mochi).

    The halves meet with one slope. On flow models the level is sigma, on others sigma / alpha (as ComfyUI's
    "linear_quadratic").
    """
    half = max(steps // 2, 1)
    slope, rest = threshold / half, max(steps - half, 1)
    later = np.maximum(np.arange(steps) - half, 0)
    fallen = slope * np.arange(steps) + (1 - threshold - slope * rest) * (later / rest) ** 2
    if schedule.kind == "flow":
        falling = schedule.time(np.log(fallen[1:]) - np.log1p(-fallen[1:]))
        return np.append(schedule.noise_time, falling)
    return _times_of_sbar(schedule, _sbar_range(schedule)[0] * (1 - fallen))


def ays(levels: Sequence[float], schedule: NoiseSchedule, steps: int) -> Array:
    """Align Your Steps (arXiv:2404.14507): ten steps optimised for one model, others log-linear between them.

    The levels are stretched in log(sigma / alpha) to the schedule's range, which on that model changes nothing.
    """
    noisy, clean = np.log(_sbar_range(schedule))
    points = np.log(levels)
    points = clean + (points - points[-1]) * (noisy - clean) / (points[0] - points[-1])
    where = np.linspace(0, len(points) - 1, steps + 1)[:-1]
    return _times_of_sbar(schedule, np.exp(np.interp(where, np.arange(len(points)), points)))


# sigma / alpha, the last at the end of the training range, which https://research.nvidia.com/labs/toronto-ai/AlignYourSteps
# prints as 0.029
AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.02917)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.02917)
AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)

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
    "normal": normal,
    "sgm-uniform": sgm_uniform,
    "simple": simple,
    "ddim-uniform": ddim_uniform,
    "kl-optimal": kl_optimal,
    "linear-quadratic": linear_quadratic,
    "ays-sd15": partial(ays, AYS_SD15),
    "ays-sdxl": partial(ays, AYS_SDXL),
    "ays-svd": partial(ays, AYS_SVD),
}
TIME_GRIDS = ("linspace", "leading", "trailing", "quadratic", "normal", "sgm-uniform", "simple", "ddim-uniform")
"""Those laid out in time, which a flow model's shift moves; the others are placed by noise level."""


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
