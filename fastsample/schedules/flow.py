"""Flow matching (rectified flow): x_t = (1 - sigma) data + sigma noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsample.schedules.base import Array, Node, NoiseSchedule


class FlowSchedule(NoiseSchedule):
    """sigma(t) = shift u / (1 + (shift - 1) u) with u = t / scale; alpha = 1 - sigma.

    With `scale` = num_train_timesteps and shift 1 the time is what diffusers' flow models are called with
    (sigma * num_train_timesteps); there the shift acts on the grid instead, see :func:`shift_sigmas`.
    An `inverted` model (Mochi) is called with `scale - t` instead and outputs data - noise.
    """

    kind = "flow"
    clean_time = 0.0
    first_time = 0.0

    def __init__(self, shift: float = 1.0, scale: float = 1.0, inverted: bool = False) -> None:
        if not (math.isfinite(shift) and shift > 0):
            raise ValueError(f"shift = {shift}: give a positive number (1 means none)")
        self.shift, self.scale, self.inverted = float(shift), float(scale), inverted
        self.noise_time = self.scale
        self.train_steps = int(scale) if scale > 1 else 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FlowSchedule:
        """Times are `sigma * num_train_timesteps`; the config's shift belongs to the grid, not to the marginal."""
        return cls(
            scale=float(config.get("num_train_timesteps", 1000)), inverted=bool(config.get("invert_sigmas", False))
        )

    def sigma(self, t: ArrayLike) -> Array:
        return shift_sigmas(np.asarray(t, dtype=np.float64) / self.scale, self.shift)

    def alpha(self, t: ArrayLike) -> Array:
        u = np.asarray(t, dtype=np.float64) / self.scale
        return np.asarray((1.0 - u) / (1.0 + (self.shift - 1.0) * u), dtype=np.float64)

    def model_time(self, times: Array) -> Array:
        return self.scale - times if self.inverted else times

    def node_of(self, model_time: float) -> Node:
        return self.node(self.scale - model_time if self.inverted else model_time)

    def level(self, node: Node) -> float:
        return node.alpha if self.inverted else node.sigma

    def output_type(self, prediction_type: str) -> str:
        """On an inverted model a flow prediction is data - noise; a v prediction is what diffusers reads it as."""
        if prediction_type == "v_prediction":
            return "flow_v"
        return "minus_flow" if self.inverted and prediction_type == "flow_prediction" else prediction_type

    def time(self, lam: ArrayLike) -> Array:
        lam = np.asarray(lam, dtype=np.float64)
        sigma = 1.0 / (1.0 + np.exp(np.minimum(lam, 700.0)))
        sigma = np.where(np.isposinf(lam), 0.0, sigma)
        return np.asarray(self.scale * shift_sigmas(sigma, 1.0 / self.shift), dtype=np.float64)


def shift_sigmas(sigmas: ArrayLike, shift: float) -> Array:
    """Move flow sigmas towards noise: shift s / (1 + (shift - 1) s) (arXiv:2403.03206, eq. 23)."""
    sigmas = np.asarray(sigmas, dtype=np.float64)
    return np.asarray(shift * sigmas / (1.0 + (shift - 1.0) * sigmas), dtype=np.float64)


def dynamic_shift(mu: float, kind: str = "exponential") -> float:
    """The factor of a resolution-dependent shift as in Flux: exp(mu) ("exponential") or mu itself ("linear")."""
    if kind not in ("exponential", "linear"):
        raise ValueError(f"time_shift_type = {kind!r}: use 'exponential' or 'linear'")
    if not math.isfinite(mu) or (kind == "linear" and mu <= 0):
        raise ValueError(f"mu = {mu}: give a finite number (positive for a linear time_shift_type)")
    return math.exp(mu) if kind == "exponential" else mu


@dataclass(frozen=True)
class Shift:
    """What a model does to the sigmas of a grid: a shift by `factor`, then a stretch that ends at a terminal sigma.

    The stretch (LTX-Video) divides 1 - sigma by `stretch`, 1 where there is none.
    """

    factor: float
    stretch: float = 1.0

    @classmethod
    def of(cls, sigmas: Array, factor: float, terminal: float | None = None) -> Shift:
        """With the last of the unshifted `sigmas` on `terminal`; a grid of pure noise alone stays as it is."""
        rest = 1.0 - float(shift_sigmas(sigmas[-1], factor))
        return cls(factor, rest / (1.0 - terminal) if terminal and rest > 0 else 1.0)

    def __call__(self, sigmas: Array) -> Array:
        shifted = shift_sigmas(sigmas, self.factor)
        return shifted if self.stretch == 1 else 1.0 - (1.0 - shifted) / self.stretch

    def undo(self, sigmas: Array) -> Array:
        """The sigmas that shift and stretch take to `sigmas`."""
        return shift_sigmas(1.0 - (1.0 - sigmas) * self.stretch, 1.0 / self.factor)
