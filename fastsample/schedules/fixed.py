"""Grids with levels of their own: made for one kind of model, and not moved by a flow model's shift."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from fastsample.schedules.base import Array, NoiseSchedule, check_steps
from fastsample.schedules.levels import levels_of, published_levels, times_at
from fastsample.schedules.published import (
    AYS32_SD15,
    AYS32_SDXL,
    AYS_SD15,
    AYS_SVD,
    GITS_SD15,
    GITS_SDXL,
    OSS_CHROMA,
    OSS_FLUX,
    OSS_WAN,
)

LTX2_END = 0.1
"""The last noisy sigma of LTX-2's grid."""


@dataclass(frozen=True)
class FixedGrid:
    """A grid for models of these `kinds` of schedule, as `(schedule, steps, **options) -> times`."""

    kinds: tuple[str, ...]
    layout: Callable[..., Array]

    def check(self, name: str, schedule_kind: str) -> None:
        """Raise ValueError where it is laid out for another kind of model."""
        if schedule_kind not in self.kinds:
            kinds = " and ".join(KINDS[kind] for kind in self.kinds)
            raise ValueError(
                f"grid = {name!r} is laid out for {kinds} models, and this "
                f"one is {KINDS[schedule_kind]}: use one of any model, as 'karras' or 'beta'"
            )


KINDS = {"vp": "variance-preserving", "flow": "flow-matching", "edm": "EDM"}


def at_sigmas(schedule: NoiseSchedule, sigmas: Array) -> Array:
    """The times at which a flow model's sigma is `sigmas`."""
    with np.errstate(divide="ignore"):
        return times_at(schedule, sigmas / (1 - sigmas))


def bong_tangent(schedule: NoiseSchedule, steps: int) -> Array:
    """Two arctangent ramps, from the noisiest level to halfway and on to clean data (RES4LYF's "bong_tangent").

    On flow models of sigma, elsewhere of sigma / alpha.
    """
    count = steps + 2
    turn = int(0.6 * count)
    parts = []
    for points, pivot, ends in ((turn, turn, (1.0, 0.5)), (count - turn, 0, (0.5, 0.0))):
        ramp = 0.5 - np.arctan(8 / count * (np.arange(points) - pivot)) / np.pi
        width = ramp[0] - ramp[-1]
        parts.append(ends[1] + (ends[0] - ends[1]) * (ramp - ramp[-1]) / width if width else np.array(ends[:1]))
    left = np.append(parts[0], parts[1][1:])[:steps]
    if schedule.kind == "flow":
        return at_sigmas(schedule, left)
    levels = levels_of(schedule, steps, "bong-tangent")
    return times_at(schedule, levels.ratio(levels.clean + left * (levels.noisy - levels.clean)))


def align_your_steps(schedule: NoiseSchedule, steps: int) -> Array:
    """Align Your Steps by the kind of model: SD 1.5's on VP models (SDXL has "ays-sdxl"), SVD's on EDM models."""
    return of_levels(AYS_SVD if schedule.kind == "edm" else AYS_SD15, schedule, steps)


def of_levels(published: Sequence[float], schedule: NoiseSchedule, steps: int) -> Array:
    """Published levels of sigma / alpha, the last of them the end."""
    levels = levels_of(schedule, steps, "log-snr")
    return times_at(schedule, levels.ratio(published_levels(published, levels, steps)))


def of_evaluations(published: Sequence[float], schedule: NoiseSchedule, steps: int) -> Array:
    """Published levels of sigma / alpha at evaluations alone; for other numbers of steps log-linear between them."""
    places = np.linspace(0, len(published) - 1, steps)
    ratios = np.exp(np.interp(places, np.arange(len(published)), np.log(published)))
    return times_at(schedule, np.minimum(ratios, math.exp(-float(schedule.lam(schedule.noise_time)))))


def optimal_steps(published: Sequence[float], schedule: NoiseSchedule, steps: int) -> Array:
    """Optimal Stepsize (arXiv:2503.21774): published sigmas, for other numbers of steps log-linear between them."""
    places = np.linspace(0, len(published) - 1, steps + 1)[:-1]
    return at_sigmas(schedule, np.exp(np.interp(places, np.arange(len(published)), np.log(published))))


def turbo(schedule: NoiseSchedule, steps: int) -> Array:
    """The ten times that SD-Turbo was distilled at, from the noisiest (ComfyUI's SDTurboScheduler)."""
    return _distilled(schedule, steps, 10, range(steps))


def consistency(schedule: NoiseSchedule, steps: int, original_steps: float = 50, strength: float = 1.0) -> Array:
    """Of the `original_steps` times that a consistency model was distilled at, evenly (diffusers' LCM and TCD).

    Of the cleanest `strength` of them, for image-to-image.
    """
    check_steps(steps, "num_inference_steps")
    used = int(original_steps * strength)
    return _distilled(schedule, steps, int(original_steps), [used * index // steps for index in range(steps)], used)


def _distilled(
    schedule: NoiseSchedule, steps: int, original: int, indices: Sequence[int], used: int | None = None
) -> Array:
    most = original if used is None else used
    if steps > most or not 0 < original <= schedule.train_steps:
        raise ValueError(
            f"num_inference_steps = {steps}: the model was distilled at {original} of {schedule.train_steps} times, "
            f"{most} of them are used; ask for fewer"
        )
    return (most - np.array(indices)) * (schedule.train_steps // original) - 1.0


def _ramp(steps: int) -> Array:
    return 1 - np.arange(steps) / steps


def shifted(sigmas: Array, mu: float) -> Array:
    """Flow sigmas moved towards noise by e^mu."""
    return np.asarray(sigmas / (sigmas + math.exp(-mu) * (1 - sigmas)))


def flux(schedule: NoiseSchedule, steps: int, tokens: float = 4096) -> Array:
    """Flux's: a shift that grows with the number of image `tokens` (4096 at 1024 x 1024)."""
    return at_sigmas(schedule, shifted(_ramp(steps), 0.5 + (tokens - 256) / (4096 - 256) * (1.15 - 0.5)))


def flux2(schedule: NoiseSchedule, steps: int, tokens: float = 4096) -> Array:
    """Flux.2's: a shift that grows with the number of image `tokens` and falls with the steps."""
    many = 1.6927e-4 * tokens + 0.45666666
    few = 8.73809524e-5 * tokens + 1.89833333
    mu = many if tokens > 4300 else many + (few - many) * (steps - 200) / (10 - 200)
    return at_sigmas(schedule, shifted(_ramp(steps), mu))


def ltx2(schedule: NoiseSchedule, steps: int, tokens: float = 4096) -> Array:
    """LTX-2's: a shift that grows with the number of `tokens`, then a stretch that ends at a sigma of 0.1."""
    sigmas = shifted(_ramp(steps), 0.95 + (tokens - 1024) / (4096 - 1024) * (2.05 - 0.95))
    if steps > 1:
        sigmas = 1 - (1 - LTX2_END) * (1 - sigmas) / (1 - sigmas[-1])
    return at_sigmas(schedule, sigmas)


def logit_normal(schedule: NoiseSchedule, steps: int, tokens: float = 4096) -> Array:
    """Quantiles of a logit-normal law (Ideogram 4's), whose mean grows with the number of image `tokens`."""
    from scipy.special import ndtri  # heavy

    with np.errstate(divide="ignore"):
        logits = 0.5 * math.log(tokens / 1024) - 1.75 * ndtri(np.arange(steps) / steps)
    return at_sigmas(schedule, 1 / (1 + np.exp(-np.clip(logits, -7.5, 9.0))))


FIXED_GRIDS: dict[str, FixedGrid] = {
    "bong-tangent": FixedGrid(("vp", "flow", "edm"), bong_tangent),
    "ays": FixedGrid(("vp", "edm"), align_your_steps),
    "ays-sd15-32": FixedGrid(("vp",), partial(of_evaluations, AYS32_SD15)),
    "ays-sdxl-32": FixedGrid(("vp",), partial(of_evaluations, AYS32_SDXL)),
    "gits": FixedGrid(("vp",), partial(of_levels, GITS_SD15)),
    "gits-sd15": FixedGrid(("vp",), partial(of_levels, GITS_SD15)),
    "gits-sdxl": FixedGrid(("vp",), partial(of_levels, GITS_SDXL)),
    "turbo": FixedGrid(("vp",), turbo),
    "lcm": FixedGrid(("vp",), consistency),
    "oss-flux": FixedGrid(("flow",), partial(optimal_steps, OSS_FLUX)),
    "oss-wan": FixedGrid(("flow",), partial(optimal_steps, OSS_WAN)),
    "oss-chroma": FixedGrid(("flow",), partial(optimal_steps, OSS_CHROMA)),
    "flux": FixedGrid(("flow",), flux),
    "flux2": FixedGrid(("flow",), flux2),
    "ltx2": FixedGrid(("flow",), ltx2),
    "logit-normal": FixedGrid(("flow",), logit_normal),
}
