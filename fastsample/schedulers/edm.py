"""What pipelines of EDM models (Cosmos 1, Stable Audio) ask of a scheduler beyond the others' interface."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastsample.schedulers.locate import located
from fastsample.schedulers.stateful import Stateful
from fastsample.schedules.edm import EDMSchedule


class EDMInterface(Stateful):
    """The first sample's scale, the network input's scale, and taking a step back; 1, 1 and no step otherwise."""

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied with: on EDM models sqrt(sigma^2 + 1), sigma that of the first level.

        That is sigma_max, as in diffusers, but where `set_timesteps` was given other levels.
        """
        schedule, run = self.schedule, self._run
        if not isinstance(schedule, EDMSchedule):
            return 1.0
        sigma = schedule.sigma_max if run.laid.layout is None else run.laid.layout.nodes[0].sigma
        return (sigma**2 + 1) ** 0.5

    def scale_model_input(self, sample: Tensor, timestep: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        """The network's input at `timestep`: `sample`, over sqrt(sigma_data^2 + sigma^2) on EDM models."""
        schedule, run = self.schedule, self._run
        if not isinstance(schedule, EDMSchedule):
            return sample
        if run.laid.layout is None:
            return sample * schedule.input_scale(schedule.node_of(float(timestep)).sigma)
        run = run if timestep is None else located(run, timestep)
        assert run.laid.layout is not None
        return sample * schedule.input_scale(run.laid.layout.nodes[run.coming or 0].sigma)

    def _get_conditioning_c_in(self, sigma: float | Tensor) -> Any:
        """The factor of :meth:`scale_model_input` at noise level `sigma`; Cosmos' video-to-world calls it."""
        schedule = self.schedule
        return schedule.input_scale(sigma) if isinstance(schedule, EDMSchedule) else 1.0

    @property
    def _step_index(self) -> int | None:
        return self._run.step_index

    @_step_index.setter
    def _step_index(self, value: int | None) -> None:
        """Cosmos counts this down after a step that it makes for the data prediction alone."""
        self._run = self._run.back_to(value)
