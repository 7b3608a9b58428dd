"""From a diffusers scheduler config and the arguments of `set_timesteps` to grid nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastsample.schedulers.grids.edm import edm_nodes
from fastsample.schedulers.grids.flow import flow_nodes, is_multistep, static_shift
from fastsample.schedulers.grids.request import GridRequest, flagged_grid, grid_name
from fastsample.schedulers.grids.vp import vp_nodes
from fastsample.schedules.base import CAPPED, Array, Node, NoiseSchedule, require_falling_noise
from fastsample.schedules.edm import EDMSchedule
from fastsample.schedules.flow import FlowSchedule, shift_sigmas

__all__ = ["GridRequest", "grid_name", "make_nodes", "training_grid", "whole_timesteps"]


def make_nodes(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    """The evaluation nodes and the final one. Raises ValueError on arguments that make no grid."""
    if isinstance(schedule, FlowSchedule):
        nodes = flow_nodes(schedule, config, request)
    else:
        explicit = request.timesteps is not None or request.sigmas is not None
        if (
            explicit
            and config.get("passed_sigmas") == "replace"
            and (config.get("timestep_grid") or flagged_grid(config))
        ):
            request, explicit = replace(request, steps=request.count, timesteps=None, sigmas=None), False
        discards = bool(config.get("discard_next_to_last_sigma")) and not explicit
        wanted = replace(request, steps=request.count + 1) if discards else request
        if isinstance(schedule, EDMSchedule):
            nodes = edm_nodes(schedule, config, wanted)
        else:
            nodes = vp_nodes(schedule, config, wanted)
        nodes = (*nodes[:-2], nodes[-1]) if discards and len(nodes) > 2 else nodes
    if config.get("prediction_type") == "epsilon" and nodes[0].alpha == 0:
        # a noise prediction says nothing at zero SNR: diffusers' classes leave alpha^2 = 2^-24 of signal
        nodes = (Node(nodes[0].time, 1 / CAPPED, (1 - CAPPED**-2) ** 0.5), *nodes[1:])
    require_falling_noise(nodes)
    return nodes


def training_grid(schedule: NoiseSchedule, config: Mapping[str, Any]) -> tuple[Array, Array]:
    """`(timesteps, sigmas)` before any `set_timesteps`, noisy to clean: every training time and its noise level.

    As diffusers' classes have them: on flow models 1000 .. 1 after the static shift and sigma = timestep / 1000
    (:class:`FlowMatchEulerDiscreteScheduler`), else the levels followed by a final 0, sigma / alpha on VP models.
    """
    if isinstance(schedule, FlowSchedule):
        sigmas = np.arange(schedule.train_steps, 0, -1) / schedule.scale
        if not config.get("use_dynamic_shifting"):
            sigmas = shift_sigmas(sigmas, static_shift(config))
        return sigmas * schedule.scale, sigmas
    if isinstance(schedule, EDMSchedule):
        nodes = edm_nodes(schedule, config, GridRequest(int(config.get("num_train_timesteps", 1000))))[:-1]
    else:
        nodes = schedule.nodes_at(np.arange(schedule.train_steps - 1, -1, -1))
    levels = [schedule.level(node) for node in nodes]
    return np.array([node.time for node in nodes]), np.array([*levels, 0.0])


def whole_timesteps(schedule: NoiseSchedule, config: Mapping[str, Any]) -> bool:
    """Whether models of this config are called with whole timesteps, as diffusers' class for it does."""
    return schedule.kind == "vp" or (schedule.kind == "flow" and is_multistep(config))
