"""What a scheduler holds: a live config, what it means, and this thread's run; read and assigned as attributes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fastsample.schedulers.advance import under
from fastsample.schedulers.config import check_switches
from fastsample.schedulers.grids.rising import Rise
from fastsample.schedulers.layout import at_levels, at_times, before_any_run
from fastsample.schedulers.live_config import Key, LiveConfig
from fastsample.schedulers.run import Held, Run
from fastsample.schedulers.setup import Setup, setup_of
from fastsample.schedules.base import NoiseSchedule


class Stateful:
    """The attributes of a scheduler. Its state is one of them, replaced at each step, never changed.

    So a copy of the scheduler or of its `__dict__`, shallow or deep, goes on by itself.
    """

    _leading_from_zero = False
    _rise: Rise | None = None  # how the grid is turned round, where runs go from clean to noisy
    _switches: tuple[str, ...] = ()  # the config keys that are on or off
    _held: Held

    def solver(self) -> tuple[str, dict[str, Any]]:
        """The registered solver and its options that the config means; ValueError when it means none."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Checks the config and sets the state before any `set_timesteps`: the training timesteps."""
        self._training_tables: dict[str, tuple[Setup, Tensor]] = {}
        self._held = Held(Run(before_any_run(self._setup)))

    @property
    def config(self) -> LiveConfig:
        """The config; assigning to a key takes effect, see :class:`fastsample.schedulers.live_config.LiveConfig`."""
        config: LiveConfig = self.__dict__["_internal_dict"]
        if type(config) is not LiveConfig:  # diffusers, and some pipelines, put their own there
            self._internal_dict = config = LiveConfig(config)
        return config

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the model that the config describes."""
        return self._setup.schedule

    @property
    def stochastic(self) -> bool:
        """Whether its solver, with the config's options, draws noise."""
        setup = self._setup
        start, end = setup.schedule.noise_time, setup.schedule.clean_time
        return setup.table(setup.schedule.nodes([end + part * (start - end) for part in (0.9, 0.6, 0.3)])).stochastic

    @property
    def order(self) -> int:
        """Evaluations of one step of the grid, as pipelines of order-2 schedulers expect."""
        return self._setup.order

    @property
    def timesteps(self) -> Tensor:
        """The times that the model is called with; before `set_timesteps` those of training.

        Assigning, or writing into it, lays the run out anew at these times: ValueError where that makes no grid.
        """
        return self._run.laid.timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor) -> None:
        self._run = Run(at_times(self._run.laid, value))

    @property
    def sigmas(self) -> Tensor:
        """sigma (flow) or sigma / alpha at each evaluation and at the end; before `set_timesteps` those of training.

        Assigning, or writing into it, lays the run out anew at these levels: ValueError where that makes no grid.
        """
        return self._run.laid.sigmas

    @sigmas.setter
    def sigmas(self, value: Tensor) -> None:
        self._run = Run(at_levels(self._run.laid, value))

    @property
    def num_inference_steps(self) -> int | None:
        """Steps of the grid; None before `set_timesteps`."""
        layout = self._run.laid.layout
        return None if layout is None else len(layout.grid) - 1

    @property
    def step_index(self) -> int | None:
        """Index of the coming step; None before the first."""
        return self._run.step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step, where a pipeline has set one."""
        return self._run.begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start from step `begin_index` (image-to-image)."""
        self._run = replace(self._run, begin_index=int(begin_index))

    def state(self) -> Run:
        """A snapshot of this thread's run, for :meth:`restore`; it costs nothing, and going on does not change it."""
        return replace(self._run, last=None)  # many may be kept, and the tensors of an evaluation are large

    def restore(self, state: Run) -> None:
        """Go on from a snapshot, which stays as it is."""
        self._run = state

    # --- inner ------------------------------------------------------------------------------------------

    @property
    def _setup(self) -> Setup:
        """What the config means now."""
        key = self.config.key()
        known: tuple[Key, Setup] | None = self.__dict__.get("_meaning")
        if known is None or known[0] is not key:
            check_switches(key.values, self._switches)
            name, options = self.solver()
            known = self._meaning = (key, setup_of(name, Key(options), key, self._leading_from_zero, self._rise))
        return known[1]

    @property
    def _run(self) -> Run:
        """This thread's run, brought up to what has been assigned since."""
        run = self._held.run
        return run if run.laid.holds(self._setup) else under(run, self._setup)

    @_run.setter
    def _run(self, run: Run) -> None:
        self._held = self._held.then(run)

    def __getstate__(self) -> dict[str, Any]:
        """The attributes of a copy, with this thread's run."""
        return {**self.__dict__, "_held": self._held.apart()}
