"""Families of models by their schedulers' configs, and the grids laid out on them, without a scheduler.

test_gaussian_schedulers.py checks that they are a scheduler's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastsample.schedulers.grid import GridRequest, make_nodes
from fastsample.schedules import GRIDS, Node, NoiseSchedule

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
FLOW = {"prediction_type": "flow_prediction", "use_dynamic_shifting": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "vp": SD,
    "zero-snr": ZERO_SNR,
    **{f"flow-{shift:g}": {**FLOW, "shift": shift} for shift in (1.0, 3.0, 12.0)},
    "flow-dynamic": {**FLOW, "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15},
    "edm": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "sigma_schedule": "karras"},
}
# two names of one grid are asked once
OWN_AND_NAMED = [None, *{grid: name for name, grid in GRIDS.items()}.values()]

Grid = tuple[NoiseSchedule, str, tuple[Node, ...]]


def mu_of(family: str) -> float | None:
    """The shift that dynamic shifting is told."""
    return 1.15 if family == "flow-dynamic" else None


@cache
def grid_of(family: str, grid: str | None, steps: int) -> Grid:
    """The schedule, prediction type and nodes that a scheduler lays out."""
    config = {**FAMILIES[family], "timestep_grid": grid}
    schedule = schedule_of(family)
    nodes = make_nodes(schedule, config, GridRequest(steps, mu=mu_of(family)))
    return schedule, schedule.output_type(config.get("prediction_type", "epsilon")), nodes


@cache
def schedule_of(family: str) -> NoiseSchedule:
    return NoiseSchedule.from_config(FAMILIES[family])
