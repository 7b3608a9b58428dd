"""What pipelines of EDM models (Cosmos 1, Stable Audio) ask of a scheduler beyond the others' interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsample.schedulers.run import RunPerThread
from fastsample.schedules.base import NoiseSchedule
from fastsample.schedules.edm import EDMSchedule
from fastsample.tables.step import Step


class EDMInterface:
    """The first sample's scale, the network input's scale, and taking a step back; 1, 1 and no step otherwise."""

    _schedule: NoiseSchedule
    _runs: RunPerThread
    _index_of: Callable[[float | Tensor], int]

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with: on EDM models sqrt(sigma_max^2 + 1), as in diffusers."""
        schedule = self._schedule
        return (schedule.sigma_max**2 + 1) ** 0.5 if isinstance(schedule, EDMSchedule) else 1.0

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The network's input at `timestep`: `sample`, over sqrt(sigma_data^2 + sigma^2) on EDM models."""
        schedule, run = self._schedule, self._runs.current
        if not isinstance(schedule, EDMSchedule):
            return sample
        if not run.nodes:
            node = schedule.node_of(float(timestep))
        elif run.step_index is not None:
            node = run.nodes[run.step_index]
        else:
            node = run.nodes[self._index_of(timestep) if run.begin_index is None else run.begin_index]
        return sample * schedule.input_scale(node.sigma)

    def _get_conditioning_c_in(self, sigma: float | Tensor) -> Any:
        """The factor of :meth:`scale_model_input` at noise level `sigma`; Cosmos' video-to-world calls it."""
        return self._schedule.input_scale(sigma) if isinstance(self._schedule, EDMSchedule) else 1.0

    @property
    def _step_index(self) -> int | None:
        return self._runs.current.step_index

    @_step_index.setter
    def _step_index(self, value: int | None) -> None:
        """Cosmos counts this down after a step that it makes for the data prediction alone."""
        self._runs.current.go_to(value)

    def _data_weights(self, step: Step) -> tuple[float, float]:
        """`(a, b)` such that the caller's clean sample is predicted as `a * sample + b * output`."""
        scale = self._schedule.data_scale
        return step.data[0] * scale, step.data[1] * scale

    def _keep_for_retake(self, sample: Tensor) -> None:
        """Before a step of an EDM model: keep what it changes, which is repeated if `sample` was, for guidance."""
        if self._schedule.kind != "edm":
            return
        run = self._runs.current
        assert run.runner is not None
        run.before = run.runner.stored
        run.runner.stored = tuple([_repeated(value, len(sample)) for value in run.before])


def _repeated(value: Tensor | None, rows: int) -> Tensor | None:
    """`value` as often as `rows` are its multiple."""
    if value is None or rows == len(value) or rows % len(value):
        return value
    return torch.cat([value] * (rows // len(value)))
