"""From the sigmas that k-diffusion and ComfyUI hand to a sampler to the points of a table."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastsample.schedules.base import Array, Node, NoiseSchedule
from fastsample.schedules.flow import FlowSchedule


class SigmaSchedule(NoiseSchedule):
    """x = data + sigma noise, with sigma itself as time: how k-diffusion sees VP, v and EDM models."""

    kind = "edm"
    clean_time = 0.0
    first_time = 0.0
    train_steps = 0

    def __init__(self, noise_time: float) -> None:
        self.noise_time = noise_time

    def sigma(self, t: ArrayLike) -> Array:
        return np.asarray(t, dtype=np.float64)

    def alpha(self, t: ArrayLike) -> Array:
        return np.ones(np.shape(t))

    def time(self, lam: ArrayLike) -> Array:
        return np.exp(-np.asarray(lam, dtype=np.float64))


def sigma_nodes(sigmas: tuple[float, ...], *, flow: bool) -> tuple[NoiseSchedule, tuple[Node, ...]]:
    """The points at `sigmas`, whose time is sigma, and their schedule; `flow`: x = (1 - sigma) data + sigma noise.

    Raises ValueError where sigmas do not fall, are negative or not finite, or on flow models above 1.
    """
    values = np.asarray(sigmas, dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0) or (flow and np.any(values > 1)):
        raise ValueError(f"sigmas = {list(sigmas)}: give finite ones of at least 0{', at most 1' if flow else ''}")
    if not np.all(np.diff(values) < 0):
        raise ValueError(
            f"sigmas = {list(sigmas)}: they must fall at every step; flipped ones go to fastsample.invert"
        )
    schedule: NoiseSchedule = FlowSchedule() if flow else SigmaSchedule(float(values[0]))
    return schedule, schedule.nodes(values)
