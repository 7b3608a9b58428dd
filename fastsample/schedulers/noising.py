"""The forward process, as pipelines and training loops ask a scheduler for it: no loop, no wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedulers.levels import marginals
from fastsample.schedulers.stateful import Stateful


class Noising(Stateful):
    """`add_noise` and its kin, at the timesteps that the caller passes: of training, whatever run there was before.

    One time for all rows which the coming step of an image-to-image run (one with a `begin_index`) tells its network
    means that run's own point: on grids placed by noise level it lies between two timesteps of training.
    """

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha data + sigma noise`; `timesteps` are one for all, one a row [B], or one a token [B, T].

        One clean sample [1, ..] may be given with noise and times of many rows.
        Whole timesteps of VP models are looked up, others lie between two (log alpha is linear there).
        Raises ValueError for timesteps that are on the host and beyond those of training; a device asserts.
        """
        alpha, sigma = self._marginals(timesteps, original_samples, noise)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """As :meth:`add_noise`, in the argument order of flow-matching pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target of velocity models: on VP models `alpha noise - sigma data`, on flow models `noise - data`.

        On EDM models (alpha noise - sigma data) / sqrt(alpha^2 + sigma^2) of data scaled to unit variance, as in
        `fastsample.tables.prediction`.
        """
        schedule = self._setup.schedule
        alpha, sigma = self._marginals(timesteps, sample, noise)
        if schedule.kind == "flow":
            return (noise - sample).to(sample.dtype)
        if schedule.kind == "edm":
            scale = schedule.data_scale
            velocity = (scale * noise - sigma / scale * sample) * (scale**2 + sigma**2) ** -0.5
        else:
            velocity = alpha * noise - sigma * sample
        return velocity.to(sample.dtype)

    def _marginals(self, timesteps: Any, like: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies the caller's clean sample, `like`, and `noise` at `timesteps`, shaped to multiply them."""
        times = torch.as_tensor(timesteps, device=None if isinstance(timesteps, Tensor) else "cpu")
        dtype = accumulation_dtype(like.dtype)
        setup = self._setup
        alpha, sigma = marginals(setup.schedule, setup.levels, times, like.device, dtype)
        own = self._own_point(times)
        if own is not None:
            time, of_data, of_noise = own
            same = (times == time).all().to(like.device)
            alpha, sigma = torch.where(same, of_data, alpha), torch.where(same, of_noise, sigma)
        shape = _broadcast_shape(times, torch.broadcast_shapes(like.shape, noise.shape))
        return alpha.reshape(shape).to(dtype), sigma.reshape(shape).to(dtype)

    def _own_point(self, times: Tensor) -> tuple[float, float, float] | None:
        """The time that the coming step of a run with a begin index tells, with the marginal that it really has."""
        run = self._held.run
        layout, index = run.laid.layout, run.coming
        if run.begin_index is None or layout is None or index is None or index >= len(layout):
            return None
        node, schedule = layout.nodes[index], run.laid.setup.schedule
        if node == schedule.node_of(node.time):
            return None
        return layout.times[index], node.alpha / schedule.data_scale, node.sigma


def _broadcast_shape(times: Tensor, samples: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what multiplies `samples`. Raises ValueError where the times are of other rows or tokens."""
    ones = (1,) * len(samples)
    if times.numel() == 1:
        return ones
    if times.shape == samples[: times.ndim]:
        return (*times.shape, *ones[times.ndim :])
    if times.numel() == samples[0]:
        return (samples[0], *ones[1:])
    raise ValueError(
        f"timesteps has shape {tuple(times.shape)} for samples of shape {tuple(samples)}: give one for all, one a "
        "row [B] or one a token [B, T]"
    )
