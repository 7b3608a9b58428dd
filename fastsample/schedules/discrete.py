"""A discrete-beta VP schedule as diffusers configures it, made continuous between timesteps."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsample.schedules.base import CAPPED, Array, NoiseSchedule

LEAST = 2.0**-100
"""Of alphas_cumprod, but for 0: sigma / alpha beyond 2^50 leaves float64 nothing of the data."""


class DiscreteSchedule(NoiseSchedule):
    """VP schedule of `alphas_cumprod`; log alpha is linear between timesteps, end segments extrapolated.

    `clean_time` (near -1) is where the first segment, extrapolated, reaches log alpha = 0: there sigma = 0.
    A final alphas_cumprod of 0 (zero-terminal SNR) is kept: log alpha falls to -inf on the last segment,
    so that alpha, linear there, is exactly 0 at the last timestep.
    """

    kind = "vp"

    def __init__(self, alphas_cumprod: ArrayLike) -> None:
        cumprod = np.asarray(alphas_cumprod, dtype=np.float64)
        if cumprod.ndim != 1 or np.count_nonzero(cumprod) < 2:
            raise ValueError(f"alphas_cumprod has shape {cumprod.shape}: give at least 2 values above 0")
        if not (np.all(np.diff(cumprod) < 0) and cumprod[0] < 1 and cumprod[-1] >= 0):
            raise ValueError("alphas_cumprod must fall strictly within [0, 1): check the betas (each in (0, 1))")
        if 0 < cumprod[-1] < LEAST:
            raise ValueError(f"alphas_cumprod falls to {cumprod[-1]:g}: give fewer betas, or smaller ones")
        self.train_steps = cumprod.size
        self.zero_terminal = bool(cumprod[-1] == 0)
        # The last point at which log alpha is finite closes the piecewise-linear part.
        self._count = cumprod.size - int(self.zero_terminal)
        self._log_alpha = 0.5 * np.log(cumprod[: self._count])
        self.noise_time = float(cumprod.size - 1)
        self.first_time = 0.0
        first = self._log_alpha[1] - self._log_alpha[0]
        self.clean_time = float(-self._log_alpha[0] / first)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DiscreteSchedule:
        """Betas from a diffusers config; keys that are absent take diffusers' defaults (0.0001..0.02 linear)."""
        betas = betas_from_config(config)
        cumprod = np.cumprod(1.0 - betas)
        shift = config.get("snr_shift_scale", 1.0)
        shift = 1.0 if shift is None else _number("snr_shift_scale", shift, math.inf)
        cumprod = cumprod / (shift + (1 - shift) * cumprod)  # SNR / shift, CogVideoX
        if config.get("rescale_betas_zero_snr", False):
            root = np.sqrt(cumprod)
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # Lin et al., arXiv:2305.08891, alg. 1
            cumprod = root**2
        return cls(cumprod)

    def log_alpha(self, t: ArrayLike) -> Array:
        """log alpha at training timestep(s) `t`; 0 at and beyond `clean_time`."""
        t = np.asarray(t, dtype=np.float64)
        last = self._count - 1
        left = np.minimum(np.maximum(t, 0.0), last - 1).astype(np.int64)
        value = self._log_alpha[left] + (t - left) * (self._log_alpha[left + 1] - self._log_alpha[left])
        if self.zero_terminal:
            with np.errstate(divide="ignore"):
                tail = self._log_alpha[last] + np.log(np.clip(self.noise_time - t, 0.0, 1.0))
            value = np.where(t > last, tail, value)
        return np.asarray(np.where(t <= self.clean_time, 0.0, np.minimum(value, 0.0)), dtype=np.float64)

    def marginals(self, t: ArrayLike) -> tuple[Array, Array]:
        log_alpha = self.log_alpha(t)
        return np.asarray(np.exp(log_alpha)), np.asarray(np.sqrt(np.abs(np.expm1(2.0 * log_alpha))))

    def alpha(self, t: ArrayLike) -> Array:
        return self.marginals(t)[0]

    def sigma(self, t: ArrayLike) -> Array:
        return self.marginals(t)[1]

    def time(self, lam: ArrayLike) -> Array:
        lam = np.asarray(lam, dtype=np.float64)
        log_alpha = -0.5 * np.logaddexp(0.0, -2.0 * lam)
        last = self._count - 1
        left = np.clip(np.searchsorted(-self._log_alpha, -log_alpha, side="right") - 1, 0, last - 1)
        slope = self._log_alpha[left + 1] - self._log_alpha[left]
        with np.errstate(invalid="ignore"):
            t = left + (log_alpha - self._log_alpha[left]) / slope
        if self.zero_terminal:
            tail = self.noise_time - np.exp(np.minimum(log_alpha - self._log_alpha[last], 0.0))
            t = np.where(log_alpha < self._log_alpha[last], tail, t)
        return np.asarray(np.where(np.isposinf(lam), self.clean_time, t), dtype=np.float64)


def ratio_range(config: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and largest sigma / alpha: given, or those of the config's betas."""
    betas = DiscreteSchedule.from_config(config)
    low, high = config.get("sigma_min"), config.get("sigma_max")
    ends = betas.nodes_at([betas.first_time, betas.noise_time])
    return float(ends[0].sbar if low is None else low), float(min(ends[1].sbar, CAPPED) if high is None else high)


def betas_from_config(config: Mapping[str, Any]) -> Array:
    """The float64 betas of a diffusers config (`trained_betas`, or `beta_schedule` with its range)."""
    trained = config.get("trained_betas")
    if trained is not None:
        return _trained(trained)
    name = config.get("beta_schedule", "linear")
    start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    steps = config.get("num_train_timesteps", 1000)
    if not isinstance(steps, int) or steps < 2:
        raise ValueError(f"num_train_timesteps = {steps!r}: give an integer of at least 2")
    if name in ("linear", "scaled_linear", "sigmoid"):
        start, end = _number("beta_start", start, 1.0), _number("beta_end", end, 1.0)
        if start > end:
            raise ValueError(f"beta_start = {start:g}, beta_end = {end:g}: give a start of at most the end")
    if name == "linear":
        return np.linspace(start, end, steps, dtype=np.float64)
    if name == "scaled_linear":
        return np.square(np.linspace(start**0.5, end**0.5, steps, dtype=np.float64))
    if name == "squaredcos_cap_v2":
        edges = np.arange(steps + 1, dtype=np.float64) / steps
        # Nichol & Dhariwal, arXiv:2102.09672, eq. 17
        return _betas_of_cumprod(np.square(np.cos((edges + 0.008) / 1.008 * math.pi / 2)))
    if name == "sigmoid":
        ramp = np.linspace(-6, 6, steps, dtype=np.float64)
        return np.asarray(start + (end - start) / (1.0 + np.exp(-ramp)))
    if name == "laplace":
        edges = np.arange(steps + 1, dtype=np.float64) / steps
        lam = -0.5 * np.sign(0.5 - edges) * np.log(1 - 2 * np.abs(0.5 - edges) + 1e-6)
        snr = np.exp(lam)
        return _betas_of_cumprod(np.sqrt(snr / (1 + snr)))
    if name == "exp":  # Shap-E (arXiv:2305.02463)
        return _betas_of_cumprod(np.exp(-12.0 * np.arange(steps + 1, dtype=np.float64) / steps))
    known = "linear, scaled_linear, squaredcos_cap_v2, exp, sigmoid, laplace"
    raise ValueError(f"beta_schedule = {name!r} is unknown: use one of {known}, or give trained_betas")


def _trained(betas: Any) -> Array:
    """`trained_betas` of a config."""
    try:
        values = np.asarray(betas, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.ndim != 1 or values.size < 2:
        raise ValueError(f"trained_betas = {reprlib.repr(betas)}: give a list of at least 2 numbers")
    outside = np.flatnonzero(~((values > 0) & (values <= 1)))
    if len(outside):
        raise ValueError(f"trained_betas[{outside[0]}] = {values[outside[0]]:g}: give numbers in (0, 1)")
    return values


def _number(key: str, value: Any, most: float) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not (number and 0 < value <= most and math.isfinite(value)):
        ends = "a positive number (1 means none)" if most == math.inf else "a number in (0, 1)"
        raise ValueError(f"{key} = {value!r}: give {ends}")
    return float(value)


def _betas_of_cumprod(bar: Array) -> Array:
    """Betas, at most 0.999, of a cumulative product given at the steps + 1 edges."""
    return np.asarray(np.minimum(1.0 - bar[1:] / bar[:-1], 0.999))
