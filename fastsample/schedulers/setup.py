"""What a scheduler's config means: the noise schedule, the solver and its options. Made once for equal configs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastsample.schedulers.config import check_config
from fastsample.schedulers.levels import TrainingLevels
from fastsample.schedulers.live_config import Key
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.solvers import build_table_on_nodes, get_solver
from fastsample.solvers.registry import Solver
from fastsample.tables.table import Table


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

    @property
    def order(self) -> int:
        """Evaluations of one step of the grid, as pipelines of order-2 schedulers expect."""
        return self.solver.evaluations if self.solver.whole_steps else 1

    @property
    def brownian(self) -> bool:
        """Whether the noise of a run's steps is of one path."""
        return bool(self.config.values["noise"] == "brownian")

    def table(self, grid: Sequence[Node], eta: float = 0.0) -> Table:
        """The solver's table on `grid`; `eta`, where it is not 0, takes the place of the solver's own."""
        config = self.config.values
        return build_table_on_nodes(
            self.name,
            grid,
            schedule=self.schedule if self.solver.needs_schedule else None,
            prediction_type=self.output_type,
            lower_final=config["lower_order_final"] and self.solver.lower_final,
            dualfast=config["dualfast"],
            **(self.options.values | ({"eta": eta} if eta else {})),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Setup:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return setup_of, (self.name, self.options, self.config, self.leading_from_zero)


@functools.lru_cache(maxsize=64)
def setup_of(name: str, options: Key, config: Key, leading_from_zero: bool) -> Setup:
    """What a config with this solver and its options means. Raises ValueError where that is nothing."""
    values = config.values
    schedule = NoiseSchedule.from_config(values)
    check_config(values, schedule.kind)
    output_type = schedule.output_type(values["prediction_type"])
    levels = TrainingLevels(schedule) if schedule.kind == "vp" else None
    setup = Setup(name, options, config, leading_from_zero, get_solver(name), schedule, output_type, levels)
    start, end = schedule.noise_time, schedule.clean_time
    setup.table(schedule.nodes([end + part * (start - end) for part in (0.9, 0.6, 0.3)]))  # wrong options die here
    return setup
