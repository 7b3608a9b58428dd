"""What training loops, RL trainers and pipelines read of a scheduler besides its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastsample.schedulers.setup import Setup
from fastsample.schedulers.stateful import Stateful
from fastsample.schedules.discrete import DiscreteSchedule


def alphas_cumprod(schedule: DiscreteSchedule) -> Tensor:
    """alpha^2 at each training timestep, float32 on the host."""
    return torch.from_numpy(schedule.alpha(range(schedule.train_steps)) ** 2).float()


def alphas(schedule: DiscreteSchedule) -> Tensor:
    """1 - beta at each training timestep."""
    squares = torch.from_numpy(schedule.alpha(range(schedule.train_steps)) ** 2)
    return (squares / torch.cat([squares.new_ones(1), squares[:-1]])).float()


def betas(schedule: DiscreteSchedule) -> Tensor:
    """The variance that each training timestep adds."""
    return 1 - alphas(schedule)


def one(schedule: DiscreteSchedule) -> Tensor:
    """alpha^2 of clean data."""
    return torch.ones((), device="cpu")


class TrainingTable:
    """A table of VP models as an attribute; other models have none. It can be moved, but not changed."""

    def __init__(self, of: Callable[[DiscreteSchedule], Tensor]) -> None:
        self._of, self.__doc__ = of, of.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        if scheduler is None:
            return self
        setup: Setup = scheduler._setup
        kept: dict[str, tuple[Setup, Tensor]] = scheduler._training_tables
        if self._name in kept and kept[self._name][0] is setup:
            return kept[self._name][1]
        if not isinstance(setup.schedule, DiscreteSchedule):
            raise AttributeError(f"{self._name}: only models trained on betas have them")
        with torch.inference_mode(False):  # kept, for training too
            value = self._of(setup.schedule)
        scheduler._training_tables = {**kept, self._name: (setup, value)}
        return value

    def __set__(self, scheduler: Any, value: Tensor) -> None:
        known = self.__get__(scheduler).cpu().double()
        if value.shape != known.shape or not torch.allclose(value.detach().cpu().double(), known, 1e-3, 1e-5):
            raise ValueError(
                f"{self._name}: the tables follow from the config; give from_config trained_betas=.. or "
                "rescale_betas_zero_snr=True"
            )
        scheduler._training_tables = {**scheduler._training_tables, self._name: (scheduler._setup, value)}


class Readings(Stateful):
    """Attributes and methods that others read, named and meant as in diffusers."""

    betas = TrainingTable(betas)
    alphas = TrainingTable(alphas)
    alphas_cumprod = TrainingTable(alphas_cumprod)
    one = TrainingTable(one)

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """alpha^2 where runs end: 1, or that of timestep 0 with `final_sigmas_type` "sigma_min"."""
        ends_noisy = self.config["final_sigmas_type"] == "sigma_min"
        return self.alphas_cumprod[0] if ends_noisy else self.one

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """The index of `timestep` in `timesteps`, or in the times given; of a repeated one that starts a step.

        Raises ValueError where it is none of them.
        """
        times = self._run.laid.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (times == timestep).nonzero().flatten().tolist()
        if not found:
            raise ValueError(f"timestep = {float(timestep):g}: none of the {len(times)} timesteps; give one of them")
        return int(found[min(1, len(found) - 1)])

    @property
    def _begin_index(self) -> int | None:
        return self._run.begin_index

    @_begin_index.setter
    def _begin_index(self, value: int | None) -> None:
        """Programs that go back to the start of a run set it, and `_step_index`, to None."""
        self._run = replace(self._run, begin_index=value)

    def _init_step_index(self, timestep: float | Tensor) -> None:
        """Make the coming step that of the begin index, else of `timestep`; FlowEdit then asks for `step_index`."""
        begin = self._run.begin_index
        self._run = self._run.at(self.index_for_timestep(timestep) if begin is None else begin)

    def previous_timestep(self, timestep: int | Tensor) -> int | Tensor:
        """The timestep that a step from `timestep` goes to, -1 at the end; before `set_timesteps` one less."""
        layout = self._run.laid.layout
        if layout is None:
            return timestep - 1
        index = self.index_for_timestep(timestep) + 1
        return self._run.laid.timesteps[index] if index < len(layout) else torch.tensor(-1, device="cpu")

    def _get_variance(self, timestep: int | Tensor, prev_timestep: int | Tensor | None = None) -> Tensor:
        """The variance of DDIM's noise at eta = 1 from `timestep` to the one before (arXiv:2010.02502, eq. 16).

        Both may be tensors of timesteps. A negative `prev_timestep` is the end of a run.
        """
        if prev_timestep is None:
            prev_timestep = self.previous_timestep(timestep)
        cumprod = self.alphas_cumprod
        now, then = (torch.as_tensor(time, device=cumprod.device).long() for time in (timestep, prev_timestep))
        source = cumprod[now]
        target = torch.where(then >= 0, cumprod[then.clamp(min=0)], self.final_alpha_cumprod.to(cumprod.device))
        return (1 - target) / (1 - source) * (1 - source / target)

    @property
    def shift(self) -> float:
        """The shift of a flow model's sigmas; to set it is :meth:`set_shift`."""
        if self.schedule.kind != "flow":
            raise AttributeError(f"{type(self).__name__} has no shift: its model is no flow-matching one")
        return float(self.config["flow_shift"] * self.config.get("shift", 1.0))

    @shift.setter
    def shift(self, shift: float) -> None:
        self.set_shift(shift)

    def set_shift(self, shift: float) -> None:
        """Shift the sigmas of a flow model by `shift` from the next `set_timesteps` on (arXiv:2403.03206, eq. 23).

        Raises ValueError on other models, and where the shift is dynamic (there `set_timesteps` takes `mu`).
        """
        if self.schedule.kind != "flow":
            raise ValueError(f"shift = {shift}: only flow-matching models have one")
        if self.config["use_dynamic_shifting"]:
            raise ValueError(f"shift = {shift}: use_dynamic_shifting is set; give set_timesteps mu, or unset it")
        if not shift > 0:
            raise ValueError(f"shift = {shift}: give a positive number (1 means none)")
        if "shift" in self.config:
            self.config["shift"], self.config["flow_shift"] = float(shift), 1.0
        else:
            self.config["flow_shift"] = float(shift)
