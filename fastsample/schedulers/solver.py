"""Any registered solver as a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.base import TableScheduler, configured
from fastsample.schedulers.grid import grid_name


@configured(solver_name="dpmpp-2m", solver_options=None)
class SolverScheduler(TableScheduler):
    """The solver registered as `solver_name`, with `solver_options` (a dict) of its own."""

    def solver(self) -> tuple[str, dict[str, Any]]:
        return self.config.solver_name, dict(self.config.solver_options or {})


def create_scheduler(
    solver: str, config: Mapping[str, Any], *, grid: str | None = None, dualfast: float = 0.0, **options: Any
) -> SolverScheduler:
    """A scheduler that runs `solver` on the model that `config`, any diffusers scheduler's, describes.

    `grid` names a time grid (default: the config's own spacing); `dualfast` is the strength of DualFast's
    correction; `options` are the solver's, e.g. order=4, beta=0.8. Raises ValueError for unknown names and options.
    """
    extra: dict[str, Any] = {"dualfast": dualfast} | ({"timestep_grid": grid} if grid is not None else {})
    scheduler = SolverScheduler.from_config(config, solver_name=solver, solver_options=options, **extra)
    if grid is not None:
        grid_name(extra, grid)  # an unknown name dies here, not in set_timesteps
    return scheduler  # type: ignore[no-any-return]
