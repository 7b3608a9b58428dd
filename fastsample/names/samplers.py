"""The names that AUTOMATIC1111 and ComfyUI give to samplers and to their noise schedules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class NamedSampler:
    """A solver with options, the grid used where the name says none, and the last-step rule.

    `discard_penultimate`: one more step is laid out and the one before the end left out.
    """

    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: str = "normal"
    discard_penultimate: bool = False


_ANCESTRAL = {"eta": 1.0}
A1111: dict[str, NamedSampler] = {
    "Euler": NamedSampler("euler"),
    "Euler a": NamedSampler("euler", _ANCESTRAL),
    "Heun": NamedSampler("heun"),
    "LMS": NamedSampler("adams", {"order": 4}),
    "DPM2": NamedSampler("dpm2", grid="karras", discard_penultimate=True),
    "DPM2 a": NamedSampler("dpm2", _ANCESTRAL, "karras", True),
    "DPM++ 2S a": NamedSampler("dpmpp-2s-ancestral", grid="karras"),
    "DPM++ SDE": NamedSampler("dpmpp-sde", grid="karras"),
    "DPM++ 2M": NamedSampler("dpmpp-2m", grid="karras"),
    "DPM++ 2M SDE": NamedSampler("dpmpp-2m-sde", grid="exponential"),
    "DPM++ 2M SDE Heun": NamedSampler("dpmpp-2m-sde", {"solver_type": "heun"}, "exponential"),
    "DPM++ 3M SDE": NamedSampler("dpmpp-3m-sde", grid="exponential", discard_penultimate=True),
    "DPM fast": NamedSampler("dpm-3s", grid="log-snr"),
    "DDIM": NamedSampler("ddim", grid="ddim-uniform"),
    "PLMS": NamedSampler("plms", grid="ddim-uniform"),
    "UniPC": NamedSampler("unipc", {"order": 3, "solver_type": "bh1"}, "linspace"),
}
COMFYUI: dict[str, NamedSampler] = {
    "euler_ancestral": NamedSampler("euler", _ANCESTRAL),
    "dpm_2": NamedSampler("dpm2", discard_penultimate=True),
    "dpm_2_ancestral": NamedSampler("dpm2", _ANCESTRAL, discard_penultimate=True),
    "dpmpp_2s_ancestral": NamedSampler("dpmpp-2s-ancestral"),
    "dpmpp_sde": NamedSampler("dpmpp-sde"),
    "dpmpp_2m": NamedSampler("dpmpp-2m"),
    "dpmpp_2m_sde": NamedSampler("dpmpp-2m-sde"),
    "dpmpp_2m_sde_heun": NamedSampler("dpmpp-2m-sde", {"solver_type": "heun"}),
    "dpmpp_3m_sde": NamedSampler("dpmpp-3m-sde"),
    "ddpm": NamedSampler("ddim", _ANCESTRAL),
    "ipndm": NamedSampler("ipndm"),
    "ipndm_v": NamedSampler("adams", {"order": 4}),
    "deis": NamedSampler("deis"),
    "res_multistep": NamedSampler("dpmpp-2m", {"solver_type": "heun"}),
    "uni_pc": NamedSampler("unipc", {"order": 3, "solver_type": "bh1"}, discard_penultimate=True),
    "uni_pc_bh2": NamedSampler("unipc", {"order": 3, "solver_type": "bh2"}, discard_penultimate=True),
}
"""Spelt with "_": the same solvers with other defaults."""

GRIDS = {
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "exponential",  # with its default rho of 1
    "Uniform": "normal",
    "Normal": "normal",
    "Simple": "simple",
    "SGM Uniform": "sgm-uniform",
    "DDIM": "ddim-uniform",
    "DDIM Uniform": "ddim-uniform",
    "Beta": "beta",  # of the noise level, as AUTOMATIC1111 and diffusers; ComfyUI's is of time
    "KL Optimal": "kl-optimal",
    "Linear Quadratic": "linear-quadratic",
    "Align Your Steps SD1": "ays-sd15",
    "Align Your Steps SDXL": "ays-sdxl",
    "Align Your Steps SVD": "ays-svd",
    "Trailing": "trailing",
    "Leading": "leading",
}

_ELSEWHERE = {
    "DPM adaptive": "its steps are not known beforehand; use fastsample.integrate_adaptive",
    "Restart": "it goes back to noisier steps, which no pipeline's loop does; use 'DPM++ 2M SDE Karras'",
    "LCM": "it is for distilled models; keep diffusers' LCMScheduler",
    "TCD": "it is for distilled models; keep diffusers' TCDScheduler",
    "DDIM CFG++": "it changes the guidance inside the pipeline; use 'DDIM'",
}


def parse_sampler_name(name: str) -> NamedSampler:
    """What a sampler name means, alone ("Euler a") or followed by its schedule ("DPM++ 2M SDE Karras").

    Case, spaces and punctuation do not matter, but an underscore says that the name is ComfyUI's; a leading "k_"
    and a trailing "_gpu" are allowed. "Align Your Steps" needs the model it was tuned for (SD1, SDXL or SVD).
    Raises ValueError, with the nearest names, for others.
    """
    text = _plain(name) if isinstance(name, str) else ""
    first, second = (COMFYUI, A1111) if "_" in str(name) else (A1111, COMFYUI)
    samplers = {_plain(known): sampler for table in (second, first) for known, sampler in table.items()}
    for candidate in (text, text.removeprefix("k"), text.removesuffix("gpu")):
        if candidate in samplers:
            return samplers[candidate]
        for label, grid in GRIDS.items():
            stem = candidate.removesuffix(_plain(label))
            if stem != candidate and stem in samplers:
                in_time = first is COMFYUI and grid == "beta"
                return replace(samplers[stem], grid="beta-time" if in_time else grid)
    for known, reason in _ELSEWHERE.items():
        if text.startswith(_plain(known)):
            raise ValueError(f"name = {name!r} is no drop-in scheduler: {reason}")
    near = {_plain(known): known for known in sampler_names()}
    close = difflib.get_close_matches(text, near, n=3, cutoff=0.3) or list(near)[:3]
    raise ValueError(
        f"name = {name!r} is unknown: did you mean {', '.join(repr(near[key]) for key in close)}? A sampler "
        f"({', '.join({**A1111, **COMFYUI})}) may be followed by one of {', '.join(GRIDS)}"
    )


def sampler_names() -> list[str]:
    """Every name understood: each sampler alone, and with each schedule."""
    samplers = [*A1111, *COMFYUI]
    return [*samplers, *(f"{sampler} {grid}" for sampler in samplers for grid in GRIDS)]


def _plain(name: str) -> str:
    """`name` without case, spaces and punctuation; "++" is "pp"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp").replace("+", "p"))
