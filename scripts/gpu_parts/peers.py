"""Our schedulers beside diffusers' own on the device, step by step on the same samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import diffusers
import torch
from torch import Tensor

import fastsample as fs
from gpu_parts import Part, Record, Setting
from gpu_parts.cases import random
from gpu_parts.timing import DEVICE, seconds, spread

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PAIRS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMScheduler", "DDIMScheduler", {"clip_sample": False, "timestep_spacing": "leading"}, {}),
    ("DPMSolverScheduler", "DPMSolverMultistepScheduler", {}, {}),
    ("DPMSolverScheduler", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    ("UniPCScheduler", "UniPCMultistepScheduler", {}, {}),
    ("UniPCScheduler", "UniPCMultistepScheduler", {"solver_order": 3}, {}),
    ("DEISScheduler", "DEISMultistepScheduler", {}, {"final_sigmas_type": "sigma_min"}),
]
"""Ours and theirs, the config of both, and what ours has to be told besides: diffusers' DEIS knows no other end."""
STEPS = 20


def network(x: Tensor, t: Any) -> Tensor:
    """A smooth made-up one."""
    return 0.9 * torch.tanh(x) + 0.1 * torch.sin(torch.as_tensor(t, device=x.device).float() / 100).to(x.dtype)


def loop(scheduler: Any, x: Tensor) -> Tensor:
    scheduler.set_timesteps(STEPS, device=DEVICE)
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
    return x


def peers(setting: Setting) -> Iterator[Record]:
    """The largest difference after each of 20 steps, both stepping from their own samples; and a run's time."""
    shape = (1, 4, 8, 8) if setting.smoke else (1, 4, 128, 128)
    for name, theirs, config, ours in PAIRS:
        for dtype in (torch.float32, torch.bfloat16):
            x = random(*shape, dtype=dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = getattr(diffusers, theirs)(**SD, **config)
                own = getattr(fs, name).from_config(other.config, **ours)
            apart = largest_difference(own, other, x)
            assert apart < (2e-3 if dtype == torch.float32 else 0.2), f"{name}: {apart:.1e} apart"
            repeats = 1 if setting.smoke else 5
            record: Record = {"scheduler": name, "config": str(config), "dtype": str(dtype).removeprefix("torch.")}
            record |= {"apart": f"{apart:.1e}"}
            record |= spread([1e6 / STEPS * s for s in seconds(lambda: loop(own, x), repeats)], "us")  # noqa: B023
            record |= spread([1e6 / STEPS * s for s in seconds(lambda: loop(other, x), repeats)], "diffusers_us")  # noqa: B023
            yield record | {"diffusers_to_ours": round(record["diffusers_us"] / record["us"], 2)}


def largest_difference(own: Any, other: Any, x: Tensor) -> float:
    """Relative to the largest value, the largest over the steps."""
    for scheduler in (own, other):
        scheduler.set_timesteps(STEPS, device=DEVICE)
    assert torch.equal(own.timesteps, other.timesteps), "the grids differ"
    mine, yours, worst = x, x.clone(), torch.zeros((), device=DEVICE)
    for t in own.timesteps:
        mine = own.step(network(mine, t), t, mine, return_dict=False)[0]
        yours = other.step(network(yours, t), t, yours, return_dict=False)[0]
        worst = torch.maximum(
            worst, (mine.float() - yours.float()).abs().max() / yours.float().abs().max().clamp_min(1)
        )
    return float(worst)


PART = Part(
    "schedulers",
    "Are our schedulers diffusers' own step by step, and what does a step cost?",
    25,
    peers,
    ("scheduler", "config", "dtype", "apart", "us", "diffusers_us", "diffusers_to_ours"),
)
