"""The forward process, as pipelines and training loops ask a scheduler for it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedulers.run import RunPerThread
from fastsample.schedules.base import NoiseSchedule


class Noising:
    """`add_noise` and its kin, at the timesteps of the run or of training."""

    _schedule: NoiseSchedule
    _runs: RunPerThread

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha data + sigma noise` at `timesteps` (one a batch item, or one for all)."""
        alpha, sigma = self._marginals(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """As :meth:`add_noise`, in the argument order of flow-matching pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`alpha noise - sigma data` (VP), the target of v prediction."""
        alpha, sigma = self._marginals(timesteps, sample)
        return (alpha * noise - sigma * sample).to(sample.dtype)

    def _marginals(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """What multiplies the caller's clean sample and noise at `timesteps`, shaped to multiply `like`."""
        run = self._runs.current
        if run.nodes and run.begin_index is not None:
            index = run.begin_index if run.step_index is None else run.step_index
            nodes = [run.nodes[index]] * len(timesteps.reshape(-1))
        else:
            scheduled = {node.time: node for node in run.nodes[:-1]}
            times = timesteps.reshape(-1).tolist()
            nodes = [scheduled.get(float(time)) or self._schedule.node_of(float(time)) for time in times]
        shape = (-1, *[1] * (like.ndim - 1))
        dtype = accumulation_dtype(like.dtype)
        scale = self._schedule.data_scale
        values = torch.tensor([[node.alpha / scale, node.sigma] for node in nodes], dtype=dtype, device=like.device)
        return values[:, 0].reshape(shape), values[:, 1].reshape(shape)
