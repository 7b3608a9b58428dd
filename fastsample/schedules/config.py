"""From a diffusers scheduler config, whatever class it is from, to the noise schedule of its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsample.schedules.base import NoiseSchedule
from fastsample.schedules.continuous import LinearVPSchedule
from fastsample.schedules.discrete import DiscreteSchedule
from fastsample.schedules.edm import EDMSchedule, edm_time, is_continuous
from fastsample.schedules.flow import FlowSchedule

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


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule that a diffusers scheduler config describes: flow matching, EDM, or discrete betas."""
    if is_flow(config):
        return FlowSchedule.from_config(config)
    return EDMSchedule.from_config(config) if is_edm(config) else DiscreteSchedule.from_config(config)


def schedule_kind(config: Mapping[str, Any]) -> str:
    """The kind of the schedule that a config describes: "flow", "edm" or "vp"."""
    return "flow" if is_flow(config) else "edm" if is_edm(config) else "vp"


def linear_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """Continuous VP with linear beta(t), t in [0, 1] (Song et al., arXiv:2011.13456, eq. 32)."""
    return LinearVPSchedule(beta_min, beta_max)


def flow(shift: float = 1.0) -> NoiseSchedule:
    """Flow matching, t in [0, 1], sigma = shift t / (1 + (shift - 1) t) (SD3, arXiv:2403.03206, eq. 23)."""
    return FlowSchedule(shift=shift)


# The public constructors of the abstract class, which knows none of its kinds.
NoiseSchedule.from_config = staticmethod(schedule_from_config)
NoiseSchedule.linear_vp = staticmethod(linear_vp)
NoiseSchedule.flow = staticmethod(flow)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers config describes flow matching; told by its keys, as the class name may be absent."""
    if config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction":
        return True
    if "beta_start" in config or "trained_betas" in config or "beta_schedule" in config:
        return False
    if "s_noise" in config and "eta" in config:  # LTXEulerAncestralRFScheduler
        return True
    return "shift" in config or "use_dynamic_shifting" in config or "base_shift" in config


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers config that is not flow matching describes an EDM model; told by its keys."""
    ranges = all(config.get(key) is not None for key in ("sigma_min", "sigma_max", "sigma_data"))
    return is_continuous(config) or (ranges and not foreign_model(config))


_CONSISTENCY = "a consistency model, which jumps to the data instead of following an ODE"
_LCM, _FLOW_LCM = f"{_CONSISTENCY} (LCM, TCD)", f"{_CONSISTENCY} (FlowMatchLCM)"
FOREIGN: tuple[tuple[tuple[str, ...], str], ...] = (
    (("s_noise", "clip_denoised"), _CONSISTENCY),  # CMStochasticIterative
    (("original_inference_steps", "timestep_scaling"), _LCM),
    (("scale_factors", "upscale_mode"), _FLOW_LCM),
    (("scaler", "s"), "Wuerstchen's, with a time of its own"),
    (("n_grid", "num_policy_substeps"), "a pi-Flow policy"),
    (("s_churn", "s_min", "s_max"), "a variance-exploding one (KarrasVe)"),
    (("snr", "correct_steps"), "a variance-exploding one (ScoreSdeVe)"),
    (
        ("beta_min", "beta_max", "sampling_eps"),
        "a continuous one (ScoreSdeVp)",
    ),
    (("num_vec_classes",), "a discrete one (VQDiffusion)"),
    (("mask_token_id",), "a masked one (Amused)"),
)
"""Keys that tell a config whose model no schedule here describes, and what that model is."""


def foreign_model(config: Mapping[str, Any]) -> str | None:
    """What the model of a config is, where no schedule here describes it."""
    if config.get("prediction_type") == "trigflow":  # SCM, Sana Sprint
        return f"{_CONSISTENCY} (trigflow)"
    return next((model for keys, model in FOREIGN if all(key in config for key in keys)), None)


def understood(config: Mapping[str, Any], *, distilled: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config to pass on, and the keys that record of which family it is.

    diffusers does not pass on a config's untouched defaults. Ours differ from those of some of its classes
    (CogVideoX, Heun, flow matching, EDM ..), and a model does not change with the class that samples it, so
    the keys that describe the model are kept: on flow matching and EDM models all of them.
    Raises ValueError for the models of :data:`FOREIGN` and for Cosmos 2's, but for LCM's and TCD's where what samples
    them is made for such models (`distilled`).
    """
    foreign = foreign_model(config)
    if config.get("scale_factors"):
        raise ValueError(
            f"scale_factors = {config['scale_factors']}: samples are not resized here; keep its scheduler"
        )
    if foreign is not None and not (distilled and foreign in (_LCM, _FLOW_LCM)):
        told = [key for keys, model in FOREIGN if model == foreign for key in keys] or ["prediction_type"]
        raise ValueError(f"config has {' and '.join(told)}, so its model is {foreign}: keep its scheduler")
    if is_flow(config) and config.get("sigma_data") is not None and float(config.get("sigma_max") or 0) > 1:
        raise ValueError(
            f"sigma_max = {config['sigma_max']} on a flow-matching config: its model (Cosmos 2) explodes variance, "
            "and its pipeline rewrites the scheduler; keep its own"
        )
    if float(config.get("s_noise") or 1.0) != 1:
        raise ValueError(f"s_noise = {config['s_noise']}: noise is not scaled here; leave it out, or set it to 1")
    defaults = config.get("_use_default_values", ())
    if is_flow(config) or is_edm(config):
        kept = {key: value for key, value in config.items() if key != "_use_default_values"}
        if not is_flow(config):
            return kept, {"edm_time": edm_time(config)}
        # FlowMatch classes have no prediction type; the one that UniPC's and DPM-Solver's configs state is kept
        return kept, {} if "prediction_type" in config else {"prediction_type": "flow_prediction"}
    return {**config, "_use_default_values": [key for key in defaults if key not in MODEL_CONFIG]}, {}
