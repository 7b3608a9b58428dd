"""The samplers and noise schedules of other programs, by the names that these give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class NamedSampler:
    """A solver with options, the grid used where the name says none, and the last-step rule.

    `on_flow`: options that are added on flow-matching models. `grid` None is the model's own spacing, and
    `grid_options` are the grid's. `discard_penultimate`: one more step is laid out, and the one before the end left
    out.
    """

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: str | None = "normal"
    discard_penultimate: bool = False
    on_flow: Mapping[str, Any] = field(default_factory=dict)
    grid_options: Mapping[str, float] = field(default_factory=dict)
    euler_at_final: bool = False  # whether the last step is of order 1, as all of ComfyUI's are

    def options_of(self, kind: str) -> dict[str, Any]:
        """The options on a model of this kind of schedule, "vp", "flow" or "edm"."""
        return {**self.options, **(self.on_flow if kind == "flow" else {})}


_ANCESTRAL, _HEUN, _RF = {"eta": 1.0}, {"solver_type": "heun"}, {"split": "rf"}
_RECTIFIED = {**_ANCESTRAL, **_RF}
_ER_SDE = {"integral": "riemann"}  # as released, there and in ComfyUI
_UNIPC = {"order": 3, "solver_type": "bh1"}

A1111: dict[str, NamedSampler] = {
    "Euler": NamedSampler("euler"),
    "Euler a": NamedSampler("euler", _ANCESTRAL, on_flow=_RF),
    "Heun": NamedSampler("heun"),
    "LMS": NamedSampler("adams", {"order": 4}),
    "DPM2": NamedSampler("dpm2", grid="karras", discard_penultimate=True),
    "DPM2 a": NamedSampler("dpm2", _ANCESTRAL, "karras", True, _RF),
    "DPM++ 2S a": NamedSampler("dpmpp-2s-ancestral", grid="karras", on_flow=_RF),
    "DPM++ SDE": NamedSampler("dpmpp-sde", grid="karras"),
    "DPM++ 2M": NamedSampler("dpmpp-2m", grid="karras"),
    "DPM++ 2M SDE": NamedSampler("dpmpp-2m-sde", grid="exponential"),
    "DPM++ 2M SDE Heun": NamedSampler("dpmpp-2m-sde", _HEUN, "exponential"),
    "DPM++ 3M SDE": NamedSampler("dpmpp-3m-sde", _HEUN, "exponential", True),
    "DPM fast": NamedSampler("dpm-3s", grid="log-snr"),
    "DDIM": NamedSampler("ddim", grid="ddim-uniform"),
    "PLMS": NamedSampler("plms", grid="ddim-uniform"),
    "UniPC": NamedSampler("unipc", _UNIPC, "linspace"),
    "LCM": NamedSampler("lcm"),
    "TCD": NamedSampler("tcd"),
    # Forge's, and those that say of themselves that they are for rectified flows
    "DDPM": NamedSampler("ddim", _ANCESTRAL),
    "HeunPP2": NamedSampler("heunpp"),
    "IPNDM": NamedSampler("ipndm", euler_at_final=True),
    "IPNDM_V": NamedSampler("adams", {"order": 4}, euler_at_final=True),
    "DEIS": NamedSampler("deis"),
    "Euler a RF": NamedSampler("euler", _RECTIFIED),
    "DPM2 a RF": NamedSampler("dpm2", _RECTIFIED, discard_penultimate=True),
    "DPM++ 2S a RF": NamedSampler("dpmpp-2s-ancestral", _RECTIFIED),
}
"""AUTOMATIC1111's and Forge's."""

COMFYUI: dict[str, NamedSampler] = {
    "euler": NamedSampler("euler"),
    "euler_ancestral": NamedSampler("euler", _ANCESTRAL, on_flow=_RF),
    "heun": NamedSampler("heun"),
    "heunpp2": NamedSampler("heunpp"),
    "exp_heun_2_x0": NamedSampler("exp-heun"),
    "exp_heun_2_x0_sde": NamedSampler("exp-heun", _ANCESTRAL),
    "dpm_2": NamedSampler("dpm2", discard_penultimate=True),
    "dpm_2_ancestral": NamedSampler("dpm2", _ANCESTRAL, discard_penultimate=True, on_flow=_RF),
    "lms": NamedSampler("adams", {"order": 4}, euler_at_final=True),
    "dpm_fast": NamedSampler("dpm-3s", grid="log-snr"),
    "dpmpp_2s_ancestral": NamedSampler("dpmpp-2s-ancestral", on_flow=_RF),
    "dpmpp_sde": NamedSampler("dpmpp-sde"),
    "dpmpp_2m": NamedSampler("dpmpp-2m"),
    "dpmpp_2m_sde": NamedSampler("dpmpp-2m-sde"),
    "dpmpp_2m_sde_heun": NamedSampler("dpmpp-2m-sde", _HEUN),
    "dpmpp_3m_sde": NamedSampler("dpmpp-3m-sde", _HEUN),
    "ddpm": NamedSampler("ddim", _ANCESTRAL),
    "lcm": NamedSampler("lcm"),
    "ipndm": NamedSampler("ipndm", euler_at_final=True),
    "ipndm_v": NamedSampler("adams", {"order": 4}, euler_at_final=True),
    "deis": NamedSampler("deis"),
    "res_multistep": NamedSampler("dpmpp-2m", _HEUN),
    "res_multistep_ancestral": NamedSampler("res-multistep-ancestral"),
    "gradient_estimation": NamedSampler("gradient-estimation"),
    "er_sde": NamedSampler("er-sde", _ER_SDE),
    "seeds_2": NamedSampler("seeds-2"),
    "seeds_3": NamedSampler("seeds-3"),
    "sa_solver": NamedSampler("sa-solver"),
    "sa_solver_pece": NamedSampler("sa-solver-pece"),
    "ddim": NamedSampler("ddim"),
    "uni_pc": NamedSampler("unipc", _UNIPC, discard_penultimate=True),
    "uni_pc_bh2": NamedSampler("unipc", {**_UNIPC, "solver_type": "bh2"}, discard_penultimate=True),
}
"""Spelt with "_": the same solvers with other defaults."""

SD_CPP: dict[str, NamedSampler] = {
    "euler_a": COMFYUI["euler_ancestral"],
    "dpm2": NamedSampler("dpm2"),
    "dpm++2s_a": COMFYUI["dpmpp_2s_ancestral"],
    "dpm++2m": COMFYUI["dpmpp_2m"],
    "dpm++2m_sde": COMFYUI["dpmpp_2m_sde"],
    "dpm++2m_sde_bt": COMFYUI["dpmpp_2m_sde"],
    "ddim_trailing": NamedSampler("ddim", grid="trailing"),
    "tcd": NamedSampler("tcd"),
    "res_2s": NamedSampler("res-2s"),
    "euler_ge": COMFYUI["gradient_estimation"],
}
"""stable-diffusion.cpp's that no other program has."""

RES4LYF: dict[str, NamedSampler] = {
    "res_2m": COMFYUI["res_multistep"],
    "res_3m": NamedSampler("res-3m"),
    "res_3s": NamedSampler("res-3s"),
    "deis_2m": NamedSampler("deis", {"order": 2}),
    "deis_3m": NamedSampler("deis"),
    "deis_4m": NamedSampler("deis", {"order": 4}),
    "dpmpp_3m": NamedSampler("dpmpp-3m", {**_HEUN, "variant": "exact"}),
    "abnorsett_2m": COMFYUI["res_multistep"],
    "abnorsett_3m": NamedSampler("dpmpp-3m", {**_HEUN, "variant": "exact"}),
    "dpmpp_2s": NamedSampler("dpmpp-2s-ancestral", {"eta": 0.0}),
    "dpmpp_sde_2s": COMFYUI["dpmpp_sde"],
    "dpmpp_3s": NamedSampler("seeds-3", {"eta": 0.0}),
    "etdrk2_2s": NamedSampler("exp-heun"),
    "heun_2s": NamedSampler("heun"),
}
"""RES4LYF's, in their deterministic form; "_ode" after or a folder before the name changes nothing."""
RES4LYF |= {f"{name}_ode": RES4LYF[name] for name in ("res_2m", "res_3m", "res_3s", "deis_2m", "deis_3m")}
RES4LYF["res_2s_ode"] = SD_CPP["res_2s"]

GRID_LABELS = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",  # with its default rho of 1
    "Uniform": "normal",
    "Normal": "normal",
    "Discrete": "normal",
    "Simple": "simple",
    "SGM Uniform": "sgm-uniform",
    "DDIM": "ddim-uniform",
    "DDIM Uniform": "ddim-uniform",
    "Beta": "beta",  # of the noise level, as AUTOMATIC1111 and diffusers; ComfyUI's is of time
    "Beta57": "beta57",
    "KL Optimal": "kl-optimal",
    "Linear Quadratic": "linear-quadratic",
    "Align Your Steps": "ays",
    "Align Your Steps SD1": "ays-sd15",
    "Align Your Steps SDXL": "ays-sdxl",
    "Align Your Steps SVD": "ays-svd",
    "Align Your Steps 32": "ays-sd15-32",
    "Align Your Steps GITS": "gits",
    "AYS": "ays",
    "GITS": "gits",
    "Turbo": "turbo",
    "Smoothstep": "smoothstep",
    "Bong Tangent": "bong-tangent",
    "Optimal Steps Flux": "oss-flux",
    "Optimal Steps Wan": "oss-wan",
    "Optimal Steps Chroma": "oss-chroma",
    "Flux": "flux",
    "Flux2": "flux2",
    "LTX2": "ltx2",
    "Logit Normal": "logit-normal",
    "Trailing": "trailing",
    "Leading": "leading",
}
"""What the programs call noise schedules; the grids here are also known by their own names."""

_GUIDANCE = "CFG++ needs both branches of guidance, and a pipeline hands its scheduler their mix alone; use {other}"
_OTHER_TABLEAU = "it is a Runge-Kutta tableau that is not here; use 'res_2s', 'res_3s' or 'res_3m'"
_IMPLICIT = "it is an implicit Runge-Kutta method, iterated with further model calls; use 'res_3s'"
_NODES = "its method is an input of its node; say which one, as 'res_2m'"

REFUSED: dict[str, str] = {
    "DPM adaptive": "its steps are not known beforehand; use fastsample.integrate_adaptive",
    "Restart": "it goes back to noisier steps, which no pipeline's loop does; use 'DPM++ 2M SDE Karras'",
    "DDIM CFG++": _GUIDANCE.format(other="'DDIM'"),
    "euler_cfg_pp": _GUIDANCE.format(other="'euler'"),
    "euler_ancestral_cfg_pp": _GUIDANCE.format(other="'euler_ancestral'"),
    "euler_a_cfg_pp": _GUIDANCE.format(other="'euler_a'"),
    "dpmpp_2s_ancestral_cfg_pp": _GUIDANCE.format(other="'dpmpp_2s_ancestral'"),
    "dpmpp_2m_cfg_pp": _GUIDANCE.format(other="'dpmpp_2m'"),
    "res_multistep_cfg_pp": _GUIDANCE.format(other="'res_multistep'"),
    "res_multistep_ancestral_cfg_pp": _GUIDANCE.format(other="'res_multistep_ancestral'"),
    "gradient_estimation_cfg_pp": _GUIDANCE.format(other="'gradient_estimation'"),
    "dpm++2mv2": "its steps are of one length for the sample and another for the data; use 'dpm++2m'",
    **dict.fromkeys(("rk", "legacy_rk", "rk_beta"), _NODES),
    **dict.fromkeys(("res_5s", "res_6s", "res_5s_ode", "res_6s_ode"), _OTHER_TABLEAU),
}
"""Samplers of the programs that are no drop-in scheduler, and why."""
REFUSED_GRIDS = {
    "Karras Exponential": "it is a blend that changes with the number of steps; use 'Karras' or 'Exponential'",
    "LLaDA Image": "it is of a masked model, which has no noise levels",
}
REFUSED_FAMILIES: tuple[tuple[str, str], ...] = (
    (r"(exponential|hybrid)/.*|(res|lawson|etdrk|pec|abnorsett)[\w-]*_?\d*[sm][\w-]*", _OTHER_TABLEAU),
    (r"(fully_implicit|diag_implicit)/.*|(gauss|radau|lobatto|irk|crouzeix|kraaij|qin|pareschi)[\w-]*", _IMPLICIT),
    (r"linear/.*|(ralston|kutta|ssprk|rk\d|bogacki|dormand|houwen|midpoint|heun_3s|tsi)[\w-]*", _OTHER_TABLEAU),
)
"""RES4LYF's other tableaux, by patterns of their names."""
