"""DDIM as a diffusers scheduler."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import configured


@configured(clip_sample=False, clip_sample_range=1.0)
class DDIMScheduler(TableScheduler):
    """DDIM (arXiv:2010.02502); on flow-matching models, Euler's method. `step` takes `eta` in [0, 1].

    `clip_sample` clips data predictions to +- `clip_sample_range`. Unlike diffusers' it is off unless the
    config says so: a latent model's config that does not mention it must not be clipped.
    """

    _leading_from_zero = True  # as diffusers' DDIM and Euler, unlike its multistep classes
    _clips = True
    _keeps_noise = True
    _pair = True

    def solver(self) -> tuple[str, dict[str, Any]]:
        return "ddim", {}
