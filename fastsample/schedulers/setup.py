"""What a scheduler's config means: the noise schedule, the solver and its options. Made once for equal configs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastsample.schedulers.config import check_config
from fastsample.schedulers.grids.flow import is_multistep
from fastsample.schedulers.grids.rising import Rise
from fastsample.schedulers.levels import TrainingLevels
from fastsample.schedulers.live_config import Key
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.schedules.config import schedule_kind
from fastsample.solvers import build_table_on_nodes, get_solver
from fastsample.solvers.registry import Solver
from fastsample.tables.preset import Preset, read_preset
from fastsample.tables.table import Table

GUIDANCE = 7.0
"""The scale under which steps are stable on flow-matching models, unless the config says: SD3 pipelines' default."""


@dataclass(frozen=True, eq=False)
class Setup:
    """A config understood: all that a step or a grid needs of it. `output_type` is what the network outputs."""

    name: str
    options: Key
    config: Key
    leading_from_zero: bool
    solver: Solver
    schedule: NoiseSchedule
    output_type: str
    levels: TrainingLevels | None  # of VP models
    preset: Preset | None = None  # of one guidance
    rise: Rise | None = None  # of schedulers that go from clean to noisy

    @property
    def order(self) -> int:
        """Evaluations of one step of the grid, as pipelines of order-2 schedulers expect."""
        return self.solver.evaluations if self.solver.whole_steps else 1

    @property
    def brownian(self) -> bool:
        """Whether the noise of a run's steps is of one path."""
        return bool(self.config.values["noise"] == "brownian")

    @property
    def stable_guidance(self) -> float | None:
        """The guidance scale under which steps shall be stable; None where orders are as published."""
        value = self.config.values["stable_guidance"]
        if value != "auto":
            return None if value is None else float(value)
        flow = self.schedule.kind == "flow" and not is_multistep(self.config.values)
        return GUIDANCE if flow and not self.solver.stages and self.rise is None else None

    def table(self, grid: Sequence[Node], eta: float = 0.0) -> Table:
        """The solver's table on `grid`; `eta`, where it is not 0, takes the place of the solver's own."""
        config = self.config.values
        return build_table_on_nodes(
            self.name,
            grid,
            schedule=self.schedule if self.solver.needs_schedule else None,
            prediction_type=self.output_type,
            lower_final=self.rise is None and bool(config["lower_order_final"]) and self.solver.lower_final,
            rising=self.rise is not None,
            dualfast=config["dualfast"],
            **({"stable_guidance": self.stable_guidance} | self.options.values | ({"eta": eta} if eta else {})),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Setup:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return setup_of, (self.name, self.options, self.config, self.leading_from_zero, self.rise)


@functools.lru_cache(maxsize=64)
def setup_of(name: str, options: Key, config: Key, leading_from_zero: bool, rise: Rise | None = None) -> Setup:
    """What a config with this solver and its options means. Raises ValueError where that is nothing."""
    values = config.values
    check_config(values, schedule_kind(values))
    schedule = NoiseSchedule.from_config(values)
    output_type = schedule.output_type(values["prediction_type"])
    levels = TrainingLevels(schedule) if schedule.kind == "vp" else None
    solver = get_solver(name)
    preset = _preset_of(values, solver, schedule, output_type)
    if preset is not None and rise is not None:
        raise ValueError("preset: its tables go from noisy to clean; give an inverse scheduler preset=None")
    setup = Setup(name, options, config, leading_from_zero, solver, schedule, output_type, levels, preset, rise)
    start, end = schedule.noise_time, schedule.clean_time
    parts = (0.9, 0.6, 0.3) if rise is None else (0.3, 0.6, 0.9)
    probe = schedule.nodes([end + part * (start - end) for part in parts], rising=rise is not None)
    setup.table(probe)  # wrong options die here
    return setup


def _preset_of(values: Mapping[str, Any], solver: Solver, schedule: NoiseSchedule, output_type: str) -> Preset | None:
    """The tuned tables of a config, for the guidance that it says. Raises ValueError where they are not for it."""
    guidance = values.get("preset_guidance")
    if values.get("preset") is None:
        if guidance is not None:
            raise ValueError(f"preset_guidance = {guidance!r} without a preset: give from_config both")
        return None
    preset = _read(values["preset"])
    preset.check(schedule, output_type)
    if solver.stochastic or solver.whole_steps:
        what = "draws noise" if solver.stochastic else "counts steps of several evaluations"
        raise ValueError(
            f"preset with {solver.name!r}, which {what}: give it to a scheduler that neither does nor draws noise, "
            "such as DPMSolverScheduler"
        )
    if values["dualfast"]:
        raise ValueError(f"dualfast = {values['dualfast']} with a preset, whose tables it would change: use one")
    if guidance is not None:
        if isinstance(guidance, bool) or not isinstance(guidance, (int, float)):
            raise ValueError(f"preset_guidance = {guidance!r}: give the guidance scale of the calls, or None")
        preset = preset.at(guidance)
    preset.entry(0)  # tables of several guidance scales die here
    return preset


@functools.lru_cache(maxsize=16)
def _read(text: str) -> Preset:
    return read_preset(text)
