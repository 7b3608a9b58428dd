"""alpha and sigma at many times at once, as tensors where they are needed: looked up or in closed form."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fastsample.schedules.base import NoiseSchedule
from fastsample.schedules.edm import EDMSchedule
from fastsample.schedules.flow import FlowSchedule


def marginals(
    schedule: NoiseSchedule, levels: TrainingLevels | None, times: Tensor, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """What multiplies the caller's clean sample and noise at the model times `times`, in their shape on `device`.

    `levels` are those of a VP schedule.
    Raises ValueError for times on the host that are beyond those of training; others are not waited for.
    """
    if times.device.type == "cpu" and not torch.compiler.is_compiling():
        check_trained(schedule, times)
    times = times.to(device)
    if isinstance(schedule, FlowSchedule):
        sigma = times.to(dtype) / schedule.scale
        return (sigma, 1 - sigma) if schedule.inverted else (1 - sigma, sigma)
    if isinstance(schedule, EDMSchedule):
        times = times.to(dtype)
        sigma = torch.exp(4 * times) if schedule.time_of == "log" else torch.tan(times * (math.pi / 2))
        return torch.ones_like(sigma), sigma
    assert levels is not None
    alphas, sigmas, logs = levels.on(device, dtype)
    if not times.is_floating_point():
        return _looked_up(alphas, times), _looked_up(sigmas, times)
    return _between(times.to(dtype), alphas, logs)


def check_trained(schedule: NoiseSchedule, times: Tensor) -> None:
    """Raise ValueError for times, on the host, beyond those of training."""
    if not times.numel():
        return
    low, high = sorted((schedule.first_time, schedule.noise_time))
    if isinstance(schedule, EDMSchedule):  # trained at noise levels of a distribution without ends
        low, high = (0.0, 1.0) if schedule.time_of == "atan" else (-math.inf, math.inf)
    least, most = (float(end) for end in times.aminmax())
    if not (low <= least and most <= high and math.isfinite(least) and math.isfinite(most)):
        raise ValueError(
            f"timesteps from {least:g} to {most:g}: the model was trained at {low:g} to {high:g}; give times of these"
        )


class TrainingLevels:
    """alpha, sigma and log alpha at every training timestep of a VP schedule; on each device once it is asked for."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        times = np.arange(schedule.train_steps)
        with np.errstate(divide="ignore"):
            rows = np.stack([schedule.alpha(times), schedule.sigma(times), np.log(schedule.alpha(times))])
        self._host = torch.from_numpy(rows)
        self._on: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The three rows, [3, number of timesteps]."""
        known = self._on.get((device, dtype))
        if known is None:
            known = self._host.to(dtype).to(device)
            if not torch.compiler.is_compiling():
                self._on[device, dtype] = known
        return known


def _looked_up(table: Tensor, times: Tensor) -> Tensor:
    """Entries of the table; unlike indexing, this refuses negative ones."""
    return table.index_select(0, times.reshape(-1)).reshape(times.shape)


def _between(times: Tensor, alphas: Tensor, logs: Tensor) -> tuple[Tensor, Tensor]:
    """At times between two of training log alpha is linear; where alpha ends at 0, alpha itself."""
    count = len(alphas)
    left = times.floor().clamp(max=count - 2).long()
    part = times - left
    start, end = (_looked_up(logs, index) for index in (left, left + 1))
    first = _looked_up(alphas, left)
    to_zero = torch.isinf(end)
    rise = torch.where(to_zero, 0.0, end - start)
    log_alpha = torch.where(to_zero, torch.log(first * (1 - part)), start + part * rise)
    return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))
