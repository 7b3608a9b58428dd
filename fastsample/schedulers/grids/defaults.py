"""The sigmas that diffusers' pipelines pass to `set_timesteps` when their user passes none.

They are told by value: a user who passes the same numbers by hand cannot be told apart (`passed_sigmas` of the config
decides then). Read off every pipeline and modular pipeline of diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fastsample.schedules.base import Array
from fastsample.schedules.flow import FlowSchedule
from fastsample.schedules.grids import linear_quadratic

ROUNDING = 1e-6  # of float32, in which some pipelines compute them


def is_pipeline_default(sigmas: Array, train_steps: int) -> bool:
    """Whether `sigmas` are what some pipeline passes by itself for as many steps."""
    return any(np.allclose(sigmas, default, rtol=0, atol=ROUNDING) for default in _defaults(len(sigmas), train_steps))


def _defaults(steps: int, train_steps: int) -> Iterator[Array]:
    ramp = np.linspace(1.0, 0.0, steps + 1)[:-1]
    yield ramp  # = linspace(1, 1 / n, n): Flux, Qwen-Image, LTX, HunyuanVideo, Z-Image, ..
    yield ramp * (1 - 1 / train_steps)  # Helios, Cosmos 3
    yield np.floor(np.linspace(train_steps, 1, steps + 1)[:-1]) / train_steps  # GLM-Image
    yield np.floor(np.linspace(train_steps, 1, steps)) / train_steps  # CogView4
    yield 1 - np.floor(np.linspace(0, train_steps - 1, steps)) / train_steps  # Bria
    yield linear_quadratic(FlowSchedule(), steps)  # Mochi, LTX with conditions
