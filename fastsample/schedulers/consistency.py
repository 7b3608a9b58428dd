"""LCM and TCD as diffusers schedulers: for consistency models alone, whose output jumps to the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import COMMON_CONFIG, configured
from fastsample.schedulers.grids.request import flagged_grid
from fastsample.schedules.fixed import consistency
from fastsample.tables.step import Step

# diffusers' own defaults for these two classes are Stable Diffusion's
STABLE_DIFFUSION = {**COMMON_CONFIG, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
OF_BOTH: dict[str, Any] = {
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
    "clip_sample": False,
    "clip_sample_range": 1.0,
}


class ConsistencyScheduler(TableScheduler):
    """The grid of distilled models: `num_inference_steps` of the `original_inference_steps` times of training."""

    _clips = True
    _distilled = True

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
        *,
        original_inference_steps: int | None = None,
        strength: float = 1.0,
    ) -> None:
        """As other schedulers'; on VP models evenly spaced times of those that the model was distilled at.

        `original_inference_steps` of them (default: the config's), the cleanest `strength` of which are used. On
        flow-matching models the grid is the model's own, and these two are refused.
        """
        laid_out = sigmas is not None or timesteps is not None or self.config["timestep_grid"]
        if self.schedule.kind == "vp" and not laid_out and flagged_grid(self.config) is None:
            original = self._original_steps(original_inference_steps)
            timesteps = consistency(self.schedule, num_inference_steps or 0, original, strength).tolist()
            original_inference_steps, strength, num_inference_steps = None, 1.0, None
        if strength != 1:
            raise ValueError(f"strength = {strength}: it is of the grid that a model was distilled on; leave it out")
        super().set_timesteps(
            num_inference_steps, device, sigmas, mu, timesteps, original_inference_steps=original_inference_steps
        )

    def _original_steps(self, asked: int | None) -> int:
        """How many times the model was distilled at."""
        return int(self.config["original_inference_steps"] if asked is None else asked)


@configured(STABLE_DIFFUSION, **OF_BOTH)
class LCMScheduler(ConsistencyScheduler):
    """Multistep consistency sampling (arXiv:2310.04378): of LCM's configs, and on flow models of FlowMatchLCM's.

    On VP models the data prediction is weighed with the sample as `timestep_scaling` says, so that at time 0 it is
    the sample (the boundary condition of arXiv:2303.01469).
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        return "lcm", {}

    def _clips_data(self) -> bool:
        return self.schedule.kind == "vp" or super()._clips_data()

    def _output_for(self, step: Step, output: Tensor, sample: Tensor, data: Tensor | None) -> Tensor:
        a, b = self._data_weights(step)
        wide = sample.to(accumulation_dtype(sample.dtype))
        data = self._data(step, output, sample) if data is None else data
        data = self._clip_data(data) if super()._clips_data() else data
        if self.schedule.kind == "vp":
            scaled = (step.node.time * self.config["timestep_scaling"]) ** 2
            data = (scaled / (scaled + 0.25)) ** 0.5 * data + 0.25 / (scaled + 0.25) * wide
        return (data - a * wide) / b


@configured({**STABLE_DIFFUSION, "final_sigmas_type": "sigma_min"}, **OF_BOTH, eta=0.3)
class TCDScheduler(ConsistencyScheduler):
    """Strategic stochastic sampling (arXiv:2402.19159): of TCD's configs. `eta` in [0, 1] is the paper's gamma.

    `step` takes it too, but for 0, which pipelines pass by themselves: that is the config's. As in diffusers any
    `original_inference_steps` that `set_timesteps` is given means every time of training.
    """

    def _original_steps(self, asked: int | None) -> int:
        return super()._original_steps(None) if asked is None else self.schedule.train_steps

    def solver(self) -> tuple[str, dict[str, Any]]:
        return "tcd", {"eta": self.config["eta"]}
