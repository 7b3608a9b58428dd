"""EDM models (Karras et al. 2022, arXiv:2206.00364): x = data + sigma noise, network inputs and outputs scaled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsample.schedules.base import Array, Node, NoiseSchedule
from fastsample.schedules.discrete import ratio_range

TIMES = ("log", "atan")


class EDMSchedule(NoiseSchedule):
    """x = sigma_data * data + sigma * noise, with data of unit variance: alpha is `sigma_data` at every time.

    Times are what the network is told (c_noise): log(sigma) / 4 ("log", EDM), or 2 atan(sigma) / pi ("atan",
    Stable Audio). The network reads x / n with n = sqrt(sigma_data^2 + sigma^2) (c_in), and its output F, with
    data = c_skip x + c_out F (arXiv:2206.00364, eq. 7), is then a v prediction, or with c_out > 0 its negative.
    In "log" sigma = 0 lies at -inf; `clean_time`, where sigma would be sigma_min / 1000, stands for it.
    """

    kind = "edm"
    train_steps = 0

    def __init__(self, sigma_min: float, sigma_max: float, sigma_data: float, time: str = "log") -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min, sigma_max = {sigma_min}, {sigma_max}: need 0 < sigma_min < sigma_max")
        if not 0 < sigma_data < math.inf:
            raise ValueError(f"sigma_data = {sigma_data}: give the data's standard deviation, a positive number")
        if time not in TIMES:
            raise ValueError(f"edm_time = {time!r} is unknown: use 'log' (EDM) or 'atan' (Stable Audio)")
        self.sigma_min, self.sigma_max, self.sigma_data = float(sigma_min), float(sigma_max), float(sigma_data)
        self.time_of = time
        self.clean_time = math.log(sigma_min / 1000) / 4 if time == "log" else 0.0
        self.noise_time, self.first_time = self._time(sigma_max), self._time(sigma_min)
        self.data_scale = self.sigma_data

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> EDMSchedule:
        """From the keys of diffusers' EDMEuler, EDMDPMSolverMultistep and CosineDPMSolverMultistep schedulers.

        Also from those of a "continuous" EulerDiscrete scheduler (Stable Video Diffusion): there sigma_data is 1, and
        a range that is not given that of its betas.
        """
        if is_continuous(config):
            return cls(*ratio_range(config), 1.0, edm_time(config))
        low, high = config.get("sigma_min") or 0.0, config.get("sigma_max") or 0.0
        return cls(low, high, config["sigma_data"], edm_time(config))

    def sigma(self, t: ArrayLike) -> Array:
        t = np.asarray(t, dtype=np.float64)
        value = np.exp(4 * t) if self.time_of == "log" else np.tan(np.pi / 2 * t)
        return np.where(t <= self.clean_time, 0.0, value)

    def alpha(self, t: ArrayLike) -> Array:
        return np.full(np.shape(t), self.sigma_data)

    def time(self, lam: ArrayLike) -> Array:
        sigma = self.sigma_data * np.exp(-np.asarray(lam, dtype=np.float64))
        with np.errstate(divide="ignore"):
            t = np.log(sigma) / 4 if self.time_of == "log" else np.arctan(sigma) * 2 / np.pi
        return np.asarray(np.maximum(t, self.clean_time), dtype=np.float64)

    def node_at(self, sigma: float) -> Node:
        """The marginal of noise level `sigma`."""
        return Node(self._time(sigma) if sigma > 0 else self.clean_time, self.sigma_data, float(sigma))

    def input_scale(self, sigma: Any) -> Any:
        """c_in, what the network's input is multiplied by at noise level(s) `sigma`."""
        return (sigma**2 + self.sigma_data**2) ** -0.5

    def output_type(self, prediction_type: str) -> str:
        """In EDM configs "epsilon" is c_out > 0, "v_prediction" c_out < 0, as diffusers' `precondition_outputs`."""
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type = {prediction_type!r}: an EDM model has 'epsilon' or 'v_prediction'")
        return "minus_v" if prediction_type == "epsilon" else prediction_type

    def _time(self, sigma: float) -> float:
        return float(self.time(math.log(self.sigma_data) - math.log(sigma)))


def is_continuous(config: Mapping[str, Any]) -> bool:
    """Whether it is EulerDiscreteScheduler's config of a model that is told log(sigma) / 4."""
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def edm_time(config: Mapping[str, Any]) -> str:
    """`edm_time` of the config, else "atan" for CosineDPMSolverMultistepScheduler's, else "log".

    Of diffusers' three EDM classes that one alone has a `solver_order` and no choice of algorithm.
    """
    if "edm_time" in config:
        return str(config["edm_time"] or "log")
    return "atan" if "solver_order" in config and "algorithm_type" not in config else "log"
