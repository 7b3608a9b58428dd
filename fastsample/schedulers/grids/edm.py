"""Grids of EDM models, and of Stable Video Diffusion, which is one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsample.schedulers.grids.request import (
    GridRequest,
    before_the_end,
    checked_times,
    chosen_options,
    final_node,
    grid_name,
    without_end,
)
from fastsample.schedulers.grids.vp import INTEGER_GRIDS, vp_nodes
from fastsample.schedules.base import Node
from fastsample.schedules.discrete import DiscreteSchedule
from fastsample.schedules.edm import EDMSchedule, is_continuous
from fastsample.schedules.grids import evaluation_times


def edm_nodes(schedule: EDMSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    """The evaluations and the end. `sigmas` of the request are sigma, its `timesteps` what the model is told."""
    final = final_node(schedule, config)
    if request.sigmas is not None:
        return (*map(schedule.node_at, without_end(request.sigmas, "sigmas").tolist()), final)
    if request.timesteps is not None:
        times = checked_times(schedule, request.timesteps, schedule.first_time, schedule.noise_time)
        return (*schedule.nodes_at(times), final)
    name = grid_name(config, spacing(config))
    if is_continuous(config) and name in INTEGER_GRIDS and not config.get("timestep_grid"):
        levels = [node.sbar for node in vp_nodes(DiscreteSchedule.from_config(config), config, request)]
        return (*(schedule.node_at(level) for level in levels[:-1]), final)
    times = evaluation_times(name, schedule, request.count, **chosen_options(config, name))
    return (*before_the_end(schedule.nodes_at(times), final, name), final)


def spacing(config: Mapping[str, Any]) -> str:
    """The grid of an EDM config that names none: `sigma_schedule`, or of Stable Video Diffusion its spacing."""
    if is_continuous(config):
        return str(config.get("timestep_spacing", "linspace"))
    return str(config.get("sigma_schedule") or "karras")
