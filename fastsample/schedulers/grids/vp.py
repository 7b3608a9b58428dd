"""Grids of models with discrete betas, as diffusers' VP schedulers lay them out."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fastsample.schedulers.grids.request import (
    GridRequest,
    before_the_end,
    checked_times,
    chosen_options,
    final_node,
    grid_name,
    without_end,
)
from fastsample.schedules.base import Array, Node, NoiseSchedule
from fastsample.schedules.grids import LEVEL_GRIDS, evaluation_times
from fastsample.schedules.levels import levels_of, noisiest_time, times_at

INTEGER_GRIDS = ("linspace", "leading", "trailing")
# diffusers truncates the timesteps of the last two and rounds those of karras and lu; a peer must see the same ones.
TRUNCATED_GRIDS = ("quadratic", "log-snr", "uniform-sigma", "exponential", "beta")


def vp_nodes(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    """The evaluations and the end. `sigmas` of the request are sigma / alpha, as diffusers means on VP models."""
    final = final_node(schedule, config)
    if request.sigmas is not None:
        times = schedule.time(-np.log(without_end(request.sigmas, "sigmas")))
        return (*_told_whole_times(schedule, times, np.round), final)
    if request.timesteps is not None:
        return (*schedule.nodes_at(checked_times(schedule, request.timesteps, 0.0, schedule.noise_time)), final)
    name = grid_name(config, config.get("timestep_spacing", "linspace"))
    if name in INTEGER_GRIDS:
        nodes = schedule.nodes_at(_whole_times(schedule, config, request, name))
    else:
        rounding = np.floor if name in TRUNCATED_GRIDS else np.round
        nodes = _told_whole_times(schedule, _placed(schedule, config, name, request.count), rounding)
    return (*before_the_end(nodes, final, name), final)


def _whole_times(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest, name: str) -> Array:
    """The timesteps of "linspace", "leading" and "trailing": whole, and each one once."""
    clipped = schedule if request.leading_from_zero and name == "leading" else _clipped(schedule, config)
    count, trained = request.count, clipped.train_steps
    most = trained if name != "leading" or request.leading_from_zero else trained - 1
    if count > most:
        raise ValueError(
            f"num_inference_steps = {count}: the {name} grid has at most {most} of the {trained} training times; ask "
            "for fewer, or for another timestep_grid"
        )
    if name == "leading" and request.leading_from_zero:
        times = np.arange(count - 1.0, -1.0, -1.0) * (trained // count)
    else:
        times = evaluation_times(name, clipped, count)
    times = np.round(times) + (config.get("steps_offset", 0) if name == "leading" else 0)
    # Near as many steps as training times, rounding makes two of them one: they move up, then down from the noisiest.
    order = np.arange(count)
    times = np.maximum.accumulate((np.clip(times, 0, schedule.noise_time) + order)[::-1])[::-1] - order
    return np.asarray(np.minimum.accumulate(np.minimum(times, schedule.noise_time) + order) - order, dtype=np.float64)


def _placed(schedule: NoiseSchedule, config: Mapping[str, Any], name: str, count: int) -> Array:
    """The times of a named grid, between the config's sigma_min and sigma_max (sigma / alpha) where it has them."""
    options, low, high = chosen_options(config, name), config.get("sigma_min"), config.get("sigma_max")
    if name not in LEVEL_GRIDS or (low is None and high is None):
        return evaluation_times(name, schedule, count, **options)
    levels = levels_of(schedule, count, name if high is None else "karras")  # a given end is in sigma / alpha
    noisy = levels.noisy if high is None else float(high)
    if low is not None:
        clean = float(low) / (1 + float(low)) if levels.fraction else float(low)
        levels = replace(levels, clean=clean)
    return times_at(schedule, levels.ratio(LEVEL_GRIDS[name](replace(levels, noisy=noisy), count, **options)))


def _clipped(schedule: NoiseSchedule, config: Mapping[str, Any]) -> NoiseSchedule:
    """The schedule without its training times of a log-SNR below `lambda_min_clipped`, as diffusers' DPM-Solver."""
    least = config.get("lambda_min_clipped")
    if least is None or least == -math.inf or not schedule.train_steps:
        return schedule
    count = int(np.sum(schedule.lam(np.arange(schedule.train_steps)) >= least))
    if count < 2:
        raise ValueError(
            f"lambda_min_clipped = {least}: no training time is left; use -5.1 for cosine betas, or -inf"
        )
    clipped = copy.copy(schedule)
    clipped.noise_time, clipped.train_steps = count - 1.0, count
    return clipped


def _told_whole_times(schedule: NoiseSchedule, times: Array, rounding: Any) -> tuple[Node, ...]:
    """Nodes at `times` whose model times are whole timesteps, as trained; the noisiest level has the noisiest."""
    told = np.clip(rounding(times + 1e-6), 0, schedule.noise_time)
    return schedule.nodes_at(times, np.where(times >= noisiest_time(schedule) - 1e-9, schedule.noise_time, told))
