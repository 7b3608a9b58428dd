"""What a diffusers scheduler config says of its model, whatever class it is from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsample.schedules.edm import edm_time, is_consistency, is_edm
from fastsample.schedules.flow import is_flow

MODEL_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "snr_shift_scale": 1.0,
    "rescale_betas_zero_snr": False,
    "prediction_type": "epsilon",
    "sigma_min": None,
    "sigma_max": None,
    "sigma_data": None,
    "sigma_schedule": None,
    "rho": 7.0,
    "edm_time": None,
    "timestep_type": "discrete",
    "invert_sigmas": False,
}
"""The config keys that describe a model, with diffusers' most common defaults.

Ours: `edm_time`, what an EDM network is told of sigma, "log" or "atan" (:class:`fastsample.schedules.EDMSchedule`).
"""


def understood(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config to pass on, and the keys that record of which family it is.

    diffusers does not pass on a config's untouched defaults. Ours differ from those of some of its classes
    (CogVideoX, LCM, Heun, flow matching, EDM ..), and a model does not change with the class that samples it, so
    the keys that describe the model are kept: on flow matching and EDM models all of them.
    Raises ValueError for a consistency model's and for Cosmos 2's.
    """
    if is_consistency(config):
        raise ValueError(
            "config has s_noise and clip_denoised, so its model is a consistency model, which jumps to the data "
            "instead of following an ODE: keep its scheduler"
        )
    if is_flow(config) and config.get("sigma_data") is not None and float(config.get("sigma_max") or 0) > 1:
        raise ValueError(
            f"sigma_max = {config['sigma_max']} on a flow-matching config: its model (Cosmos 2) explodes variance, "
            "and its pipeline rewrites the scheduler; keep its own"
        )
    defaults = config.get("_use_default_values", ())
    if is_flow(config) or is_edm(config):
        kept = {key: value for key, value in config.items() if key != "_use_default_values"}
        return kept, {"prediction_type": "flow_prediction"} if is_flow(config) else {"edm_time": edm_time(config)}
    return {**config, "_use_default_values": [key for key in defaults if key not in MODEL_CONFIG]}, {}
