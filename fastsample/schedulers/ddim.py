"""DDIM as a diffusers scheduler."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module
from torch import Tensor

from fastsample.sampling.noise import Generators
from fastsample.schedulers.base import TableScheduler, TableSchedulerOutput
from fastsample.schedulers.config import configured


@configured(clip_sample=False, clip_sample_range=1.0)
class DDIMScheduler(TableScheduler):
    """DDIM (arXiv:2010.02502); on flow-matching models, Euler's method. `step` takes `eta` in [0, 1].

    `clip_sample` clips data predictions to +- `clip_sample_range`. Unlike diffusers' it is off unless the
    config says so: a latent model's config that does not mention it must not be clipped.
    """

    _leading_from_zero = True  # as diffusers' DDIM and Euler, unlike its multistep classes

    def solver(self) -> tuple[str, dict[str, Any]]:
        return "ddim", {"eta": self._run.eta if hasattr(self, "_runs") else 0.0}

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        *,
        pred_original_sample: Tensor | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> TableSchedulerOutput | tuple[Tensor, ...]:
        """As the base class; `eta` 0 is deterministic, 1 ancestral (DDPM)."""
        if eta != self._run.eta:
            self._run.eta = eta
            self._run.restart()
        return super().step(
            model_output,
            timestep,
            sample,
            generator,
            variance_noise,
            return_dict,
            pred_original_sample=pred_original_sample,
            per_token_timesteps=per_token_timesteps,
        )

    def _clips_data(self) -> bool:
        return bool(self.config.thresholding or self.config.clip_sample)

    def _clip_data(self, data: Tensor) -> Tensor:
        if self.config.thresholding:
            return super()._clip_data(data)
        limit = self.config.clip_sample_range
        return torch.clamp(data, -limit, limit)
