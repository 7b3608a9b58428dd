"""alpha and sigma at many times at once, as tensors where they are needed: looked up or in closed form."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from fastsample.schedulers.setup import Setup
from fastsample.schedules.base import NoiseSchedule
from fastsample.schedules.edm import EDMSchedule
from fastsample.schedules.flow import FlowSchedule


def marginals(setup: Setup, times: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What multiplies the caller's clean sample and noise at the model times `times`, in their shape on `device`.

    Raises ValueError for times on the host that are beyond those of training; others are not waited for.
    """
    schedule = setup.schedule
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
    alphas, sigmas, logs = training_levels(schedule, device, dtype)
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


@functools.lru_cache(maxsize=32)
def training_levels(
    schedule: NoiseSchedule, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and log alpha at every training timestep of a VP schedule."""
    with np.errstate(divide="ignore"):
        alpha, sigma = (of(np.arange(schedule.train_steps)) for of in (schedule.alpha, schedule.sigma))
        rows = (alpha, sigma, np.log(alpha))
    host = torch.from_numpy(np.stack(rows)).to(dtype)
    return tuple(host.to(device))  # type: ignore[return-value]


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
    straight = torch.log(first * (1 - part))
    log_alpha = torch.where(
        torch.isinf(end), straight, start + part * torch.where(torch.isinf(end), start, end - start)
    )
    return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))
