"""Time grids by name: where along a noise schedule the model is evaluated.

A grid function returns `steps` evaluation times, noisy to clean; :func:`time_grid` appends the final time.
Adding a grid is adding one function to :data:`TIME_GRIDS`, to `LEVEL_GRIDS` of :mod:`fastsample.schedules.levels` if
it is placed by noise level, or to `FIXED_GRIDS` of :mod:`fastsample.schedules.fixed` if it is one model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from fastsample.schedules.base import Array, NoiseSchedule, check_steps
from fastsample.schedules.fixed import FIXED_GRIDS
from fastsample.schedules.levels import LEVEL_GRIDS, levels_of, min_time, noisiest_time, times_at, times_of_levels

__all__ = [
    "FIXED_GRIDS",
    "GRIDS",
    "LEVEL_GRIDS",
    "TIME_GRIDS",
    "check_steps",
    "min_time",
    "noisiest_time",
    "time_grid",
]

Grid = Callable[..., Array]
"""`(schedule, steps, **options) -> times`, `steps` of them, noisy to clean."""


def linspace(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in time from the noisiest to the first training time, which is left out (arXiv:2305.08891, tab. 2)."""
    return np.linspace(schedule.noise_time, schedule.first_time, steps + 1)[:-1]


def leading(schedule: NoiseSchedule, steps: int) -> Array:
    """Whole multiples of `train_steps // (steps + 1)`, without 0, as diffusers' multistep schedulers."""
    if not schedule.train_steps:
        return linspace(schedule, steps)
    apart = schedule.train_steps // (steps + 1)
    if not apart:
        raise ValueError(
            f"steps = {steps}: the leading grid of {schedule.train_steps} training times has at most "
            f"{schedule.train_steps - 1}; ask for fewer, or for another grid"
        )
    return np.arange(steps, 0, -1, dtype=np.float64) * apart


def trailing(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in time, always from the noisiest time (arXiv:2305.08891, tab. 2)."""
    if schedule.kind == "vp" and schedule.train_steps:
        return schedule.train_steps * np.arange(steps, 0, -1, dtype=np.float64) / steps - 1.0
    return np.linspace(schedule.noise_time, schedule.first_time, steps + 1)[:-1]


def quadratic(schedule: NoiseSchedule, steps: int) -> Array:
    """Uniform in the square root of time (DDIM, arXiv:2010.02502, app. D.2): dense near clean data."""
    ramp = np.linspace(1.0, 0.0, steps + 1)[:-1]
    return schedule.first_time + (schedule.noise_time - schedule.first_time) * ramp**2


def shifted_quadratic(schedule: NoiseSchedule, steps: int, shift: float = 1.5) -> Array:
    """The quadratic grid, moved towards noise as by SD3's shift (arXiv:2403.03206, eq. 23): dense at both ends.

    On flow models it comes on top of the model's own shift.
    """
    part = np.linspace(1.0, 0.0, steps + 1)[:-1] ** 2
    moved = shift * part / (1 + (shift - 1) * part)
    return schedule.first_time + (schedule.noise_time - schedule.first_time) * moved


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


def beta_time(schedule: NoiseSchedule, steps: int, a: float = 0.6, b: float = 0.6) -> Array:
    """Beta(a, b) quantiles of time (arXiv:2407.12173), as ComfyUI's "beta"; "beta" is of the noise level."""
    from scipy.stats import beta as distribution  # heavy

    quantiles = distribution.ppf(1.0 - np.linspace(0.0, 1.0, steps, endpoint=False), a, b)
    first = min_time(schedule)
    return trained(schedule, first + quantiles * (schedule.noise_time - first))


def smoothstep(schedule: NoiseSchedule, steps: int) -> Array:
    """Time falls as 3 u^2 - 2 u^3, dense at both ends (stable-diffusion.cpp's "smoothstep")."""
    u, first = 1 - np.arange(steps) / steps, min_time(schedule)
    return trained(schedule, first + (schedule.noise_time - first) * u**2 * (3 - 2 * u))


def trained(schedule: NoiseSchedule, times: Array) -> Array:
    """`times` rounded to those of training, as the programs have them, unless that would make two of them one."""
    rounded = np.rint(times)
    return rounded if schedule.train_steps and np.all(np.diff(rounded) < 0) else np.asarray(times)


def linear_quadratic(schedule: NoiseSchedule, steps: int, threshold: float = 0.025) -> Array:
    """The noise level falls by `threshold` over the first half of the steps, then quadratically (Movie Gen, Mochi).

    The halves meet with one slope. On flow models the level is time, on VP and EDM models sigma / alpha (as ComfyUI's
    "linear_quadratic"), or from zero SNR sigma / (alpha + sigma).
    """
    half = max(steps // 2, 1)
    slope, rest = threshold / half, max(steps - half, 1)
    later = np.maximum(np.arange(steps) - half, 0)
    left = 1 - slope * np.arange(steps) - (1 - threshold - slope * rest) * (later / rest) ** 2
    if schedule.kind == "flow":
        return np.asarray(schedule.noise_time * left, dtype=np.float64)
    levels = levels_of(schedule, steps, "linear-quadratic")
    return times_at(schedule, levels.ratio(levels.noisy * left))


TIME_GRIDS: dict[str, Grid] = {
    "linspace": linspace,
    "leading": leading,
    "trailing": trailing,
    "quadratic": quadratic,
    "shifted-quadratic": shifted_quadratic,
    "normal": normal,
    "sgm-uniform": sgm_uniform,
    "simple": simple,
    "ddim-uniform": ddim_uniform,
    "beta-time": beta_time,
    "beta57": partial(beta_time, a=0.5, b=0.7),
    "smoothstep": smoothstep,
    "linear-quadratic": linear_quadratic,
}
"""Those laid out in time, which a flow model's shift moves."""
GRIDS: dict[str, Grid] = {**TIME_GRIDS, **{name: partial(times_of_levels, name) for name in LEVEL_GRIDS}}
"""Those of any model."""


def grid_names() -> list[str]:
    """Every grid's name: those of any model, then those that are made for one kind."""
    return [*GRIDS, *FIXED_GRIDS]


def grid_options(name: str) -> dict[str, Any]:
    """The options of grid `name` and their defaults, e.g. rho of "karras", a and b of "beta"."""
    fixed = FIXED_GRIDS.get(name)
    function = fixed.layout if fixed else LEVEL_GRIDS.get(name) or TIME_GRIDS[name]
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}


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
    times = times[times > last + 1e-9 * (schedule.noise_time - last)]
    return np.append(times, last)


def evaluation_times(name: str, schedule: NoiseSchedule, steps: int, **options: Any) -> Array:
    """The `steps` times of grid `name` at which the model is evaluated; `options` are the grid's.

    Raises ValueError for unknown names, and for a grid that is made for another kind of model.
    """
    if name in FIXED_GRIDS:
        FIXED_GRIDS[name].check(name, schedule.kind)
        return FIXED_GRIDS[name].layout(schedule, steps, **options)
    if name not in GRIDS:
        raise ValueError(f"grid = {name!r} is unknown: use one of {', '.join(grid_names())}")
    return GRIDS[name](schedule, steps, **options)
