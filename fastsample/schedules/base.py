"""What every noise schedule answers: alpha(t), sigma(t), lam(t) and its inverse, in float64.

The forward process is `x_t = alpha(t) data + sigma(t) noise`. `lam = log(alpha / sigma)` is half the
log-SNR, as in DPM-Solver (arXiv:2206.00927). Zero-terminal SNR (alpha = 0, lam = -inf) and clean data
(sigma = 0, lam = +inf) are ordinary values.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CAPPED = 2.0**12  # sigma / alpha that diffusers and ComfyUI give to zero SNR, about


@dataclass(frozen=True)
class Node:
    """A point of a time grid: the time that the model is given, and the marginal there."""

    time: float
    alpha: float
    sigma: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time) and 0 <= self.alpha < math.inf and 0 <= self.sigma < math.inf):
            values = (self.time, self.alpha, self.sigma)
            raise ValueError(f"node {values}: time, alpha, sigma must be finite, alpha and sigma >= 0")
        if self.alpha == 0 and self.sigma == 0:
            raise ValueError(f"node at time {self.time}: alpha and sigma are both 0; one must be positive")

    @property
    def has_signal(self) -> bool:
        """Whether there is more than an 8192th of signal; below, as at zero SNR, noise-form steps lose all digits."""
        return self.alpha > self.sigma * 2.0**-13

    @cached_property
    def lam(self) -> float:
        """log(alpha / sigma): -inf at zero SNR, +inf on clean data."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha > 0 else -math.inf

    @property
    def sbar(self) -> float:
        """sigma / alpha, the noise level of the variance-exploding view; inf at zero SNR."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def fraction(self) -> float:
        """sigma / (alpha + sigma): sigma itself on flow models, 1 at zero SNR."""
        return self.sigma / (self.alpha + self.sigma)


class NoiseSchedule(ABC):
    """alpha(t), sigma(t), lam(t) and its inverse `time(lam)`, vectorised, in float64.

    Made by `NoiseSchedule.from_config` (a diffusers scheduler config; times are training timesteps as floats),
    `NoiseSchedule.linear_vp` or `NoiseSchedule.flow` (times in [0, 1]), all of `fastsample.schedules.config`.
    """

    from_config: ClassVar[staticmethod[[Mapping[str, Any]], NoiseSchedule]]
    linear_vp: ClassVar[staticmethod[..., NoiseSchedule]]
    flow: ClassVar[staticmethod[..., NoiseSchedule]]

    kind: str  # "vp" (alpha^2 + sigma^2 = 1), "flow" (alpha + sigma = 1) or "edm" (alpha = sigma_data)
    clean_time: float  # the time at which sigma = 0
    noise_time: float  # the noisiest time of training
    first_time: float  # the least noisy time of training (clean_time where that was trained)
    train_steps: int  # number of training timesteps; 0 for a continuous schedule
    data_scale: float = 1.0  # the caller's clean sample is data_scale * data

    @abstractmethod
    def alpha(self, t: ArrayLike) -> Array:
        """Signal scale at time(s) `t`."""

    @abstractmethod
    def sigma(self, t: ArrayLike) -> Array:
        """Noise standard deviation at time(s) `t`."""

    @abstractmethod
    def time(self, lam: ArrayLike) -> Array:
        """The time(s) at which log(alpha / sigma) = `lam`; accepts +inf (clean data)."""

    def marginals(self, t: ArrayLike) -> tuple[Array, Array]:
        """`(alpha, sigma)` at time(s) `t`."""
        return self.alpha(t), self.sigma(t)

    def lam(self, t: ArrayLike) -> Array:
        """log(alpha(t) / sigma(t))."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.alpha(t)) - np.log(self.sigma(t)), dtype=np.float64)

    def node(self, t: float, model_time: float | None = None) -> Node:
        """The marginal at time `t`, as a grid point that the model is called with `model_time` (or `t`)."""
        return self.nodes_at([t], None if model_time is None else [model_time])[0]

    def nodes_at(self, times: ArrayLike, model_times: ArrayLike | None = None) -> tuple[Node, ...]:
        """The marginals at `times`, in any order, where the model is called with `model_times` (or `times`)."""
        times = np.asarray(times, dtype=np.float64)
        told = times if model_times is None else np.asarray(model_times, dtype=np.float64)
        alphas, sigmas = self.marginals(times)
        return tuple(map(Node, self.model_time(told).tolist(), alphas.tolist(), sigmas.tolist()))

    def model_time(self, times: Array) -> Array:
        """What the model is called with at `times`: themselves, but on inverted flow models."""
        return times

    def output_type(self, prediction_type: str) -> str:
        """What a network outputs whose config says `prediction_type`, as a type of `fastsample.tables`."""
        return prediction_type

    def node_of(self, model_time: float) -> Node:
        """The marginal where the model is called with `model_time`."""
        return self.node(model_time)

    def level(self, node: Node) -> float:
        """The noise level of `node` that diffusers' `sigmas` would hold: on VP models sigma / alpha."""
        return min(node.sbar, CAPPED) if self.kind == "vp" else node.sigma

    def nodes(self, times: ArrayLike, *, rising: bool = False) -> tuple[Node, ...]:
        """Grid points for `times`. Raises ValueError unless noise falls, or with `rising` rises, at every step."""
        values = np.asarray(times, dtype=np.float64)
        if values.ndim != 1 or values.size < 2:
            raise ValueError(f"times has shape {values.shape}: give a list of at least 2 decreasing times")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"times = {values.tolist()}: every time must be finite")
        nodes = self.nodes_at(values)
        require_falling_noise(nodes, rising=rising)
        return nodes


def require_falling_noise(nodes: Sequence[Node], *, rising: bool = False) -> None:
    """Raise ValueError unless lam rises (or with `rising`, where noise rises, falls) strictly from node to node."""
    lams = [node.lam for node in nodes]
    for index, (before, after) in enumerate(itertools.pairwise(lams)):
        if not (after < before if rising else before < after):
            source, target = nodes[index], nodes[index + 1]
            way, order = ("rise", "clean to noisy") if rising else ("fall", "noisy to clean")
            raise ValueError(
                f"times[{index}] = {source.time:g}, times[{index + 1}] = {target.time:g}: the noise must {way} at "
                f"every step (lam {before:.6g} -> {after:.6g}); remove repeated times and sort from {order}"
            )


def check_steps(steps: object, argument: str) -> None:
    """Raise ValueError unless `steps` is an integer of at least 1."""
    if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"{argument} = {steps!r}: give an integer of at least 1")
