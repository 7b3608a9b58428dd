"""Configs of the families of models, and for each what an exact network of one clean sample outputs."""

from __future__ import annotations

import functools
from typing import Any

import diffusers
import torch
from torch import Tensor

import fastsample as fs
from fastsample.tables.table import output_of

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "vp": (SD, {}),
    "vp-v": ({**SD, "prediction_type": "v_prediction"}, {}),
    "vp-sample-leading": ({**SD, "prediction_type": "sample", "timestep_spacing": "leading", "steps_offset": 1}, {}),
    "vp-karras": ({**SD, "use_karras_sigmas": True}, {}),
    "zero-snr": ({**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {}),
    "flow": (FLOW(shift=3.0).config, {}),
    "flow-dynamic": (FLOW(use_dynamic_shifting=True).config, {"mu": 0.9}),
    "flow-inverted": (FLOW(invert_sigmas=True).config, {}),
    "edm": (diffusers.EDMEulerScheduler(sigma_min=0.02, sigma_max=80.0, sigma_data=0.5).config, {}),
}
"""A config, and what `set_timesteps` needs besides a number of steps."""
SCHEDULERS = {
    "ddim": fs.DDIMScheduler,
    "dpm-2": fs.DPMSolverScheduler,
    "dpm-3": functools.partial(fs.DPMSolverScheduler.from_config, solver_order=3),
    "dpm-sde": functools.partial(fs.DPMSolverScheduler.from_config, algorithm_type="sde-dpmsolver++"),
    "dpm-single": functools.partial(fs.DPMSolverScheduler.from_config, singlestep=True),
    "unipc": fs.UniPCScheduler,
    "deis": fs.DEISScheduler,
    "ipndm": fs.IPNDMScheduler,
    "ghvb": fs.GHVBScheduler,
    "heavy-ball": fs.HeavyBallScheduler,
    "accelerated": fs.AcceleratedScheduler,
    "heun": functools.partial(fs.create_scheduler, "heun"),
    "dualfast": functools.partial(fs.create_scheduler, "dpmpp-2m", dualfast=0.3),
}
CARRY_NOTHING = ("ddim",)


def make(scheduler: str, family: str, steps: int | None = 6, **config: Any) -> Any:
    """A scheduler of a family, its grid laid out unless `steps` is None."""
    kind, (own, arguments) = SCHEDULERS[scheduler], FAMILIES[family]
    made = (kind.from_config if isinstance(kind, type) else kind)({**own, **config})
    if steps is not None:
        made.set_timesteps(steps, **arguments)
    return made


def lay_out(scheduler: Any, family: str, steps: int) -> None:
    """`set_timesteps` with what the family needs besides."""
    scheduler.set_timesteps(steps, **FAMILIES[family][1])


def network(x: Tensor, t: Any) -> Tensor:
    """A smooth made-up network."""
    return 0.9 * torch.tanh(x) + 0.1 * torch.sin(torch.as_tensor(t).float() / 100)


def point(scheduler: Any, index: int, data: Tensor, noise: Tensor) -> Tensor:
    """The sample at evaluation `index` of the run, or at its end, on the trajectory from `noise` to `data`."""
    node = scheduler.state().laid.layout.nodes[index]
    return node.alpha / scheduler.schedule.data_scale * data + node.sigma * noise


def exact(scheduler: Any, index: int, data: Tensor, noise: Tensor) -> Tensor:
    """What an exact network outputs there."""
    node, schedule = scheduler.state().laid.layout.nodes[index], scheduler.schedule
    kind = schedule.output_type(scheduler.config.prediction_type)
    return output_of(node, kind, data / schedule.data_scale, noise)
