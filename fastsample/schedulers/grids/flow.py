"""Grids of flow-matching models: the model's shift first, then the grid that was asked for.

As diffusers' FlowMatchEulerDiscreteScheduler: sigmas, given or spaced by the config, go through the static or dynamic
shift and the stretch to `shift_terminal`; a grid placed by noise level is then laid out between the first and the
last of them. A grid laid out in time takes their place before the shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastsample.schedulers.grids.defaults import is_pipeline_default
from fastsample.schedulers.grids.request import (
    GridRequest,
    before_the_end,
    checked_times,
    chosen_options,
    flagged_grid,
    without_end,
)
from fastsample.schedules.base import Array, Node
from fastsample.schedules.discrete import ratio_range
from fastsample.schedules.flow import FlowSchedule, Shift, dynamic_shift, shift_sigmas
from fastsample.schedules.grids import FIXED_GRIDS, LEVEL_GRIDS, evaluation_times
from fastsample.schedules.levels import Levels

NEAR_NOISE = 1 - float(np.float32(1 - 1e-6))  # alpha that diffusers' UniPC leaves at the first step, in float32


def flow_nodes(schedule: FlowSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    """The evaluations and the end. Raises ValueError on sigmas or timesteps that are no noise levels of the model."""
    given = _given(schedule, request)
    name, flagged = config.get("timestep_grid"), flagged_grid(config)
    laid = given is None or ((name or flagged) and _gives_way(given, schedule, config))
    if not laid:
        name = None
    if given is not None and request.sigmas is None and not laid:
        sigmas, times = given, given * schedule.scale  # a time that the model is told says what sigma is: no shift
    else:
        sigmas, times = _laid_out(schedule, config, request, name, given)
    if _like_unipc(config) or config.get("prediction_type") == "epsilon":
        sigmas = np.minimum(sigmas, 1 - NEAR_NOISE)
        times = np.minimum(times, (1 - NEAR_NOISE) * schedule.scale)
    nodes = schedule.nodes_at(sigmas * schedule.scale, np.floor(times) if is_multistep(config) else times)
    final = schedule.node(_end(schedule, config, request, sigmas) * schedule.scale)
    return (*before_the_end(nodes, final, (name or "flow") if laid else None), final)


def is_multistep(config: Mapping[str, Any]) -> bool:
    """Whether a flow config is of diffusers' DPM-Solver or UniPC, which space and round their own way."""
    return bool(config.get("use_flow_sigmas")) and "shift" not in config


def static_shift(config: Mapping[str, Any]) -> float:
    """The factor of the config's own shift; `flow_shift` before `shift`, as one is often copied from the other."""
    own = float(config.get("flow_shift") or 1.0)
    return own if own != 1 else float(config.get("shift") or 1.0)


def _gives_way(given: Array, schedule: FlowSchedule, config: Mapping[str, Any]) -> bool:
    """Whether a grid by name takes the place of the sigmas `given`: those that a pipeline passes by itself."""
    rule = config.get("passed_sigmas") or "auto"
    return rule == "replace" or (rule == "auto" and is_pipeline_default(given, schedule.train_steps))


def _laid_out(
    schedule: FlowSchedule, config: Mapping[str, Any], request: GridRequest, name: str | None, given: Array | None
) -> tuple[Array, Array]:
    """The sigmas after shift and grid `name` (or the flagged one), and what an uninverted model is told of them."""
    steps = request.count if given is None else len(given)
    discards = config.get("discard_next_to_last_sigma") and (name is not None or given is None)
    count = steps + 1 if discards else steps  # laid out; the last is left out again
    factor, terminal = _shift_factor(config, request.mu), config.get("shift_terminal")
    base = _own_sigmas(config, schedule, count, factor) if given is None else given
    shift = Shift.of(base, factor, terminal)
    sigmas = shift(base)
    if name in LEVEL_GRIDS:
        sigmas = _between(config, name, sigmas, count)
    elif name in FIXED_GRIDS:  # no shift moves it
        sigmas = evaluation_times(name, schedule, count, **chosen_options(config, name)) / schedule.scale
    elif name is not None:
        base = evaluation_times(name, schedule, count, **chosen_options(config, name)) / schedule.scale
        shift = Shift.of(base, factor, terminal)
        sigmas = shift(base)
    elif given is None or config.get("passed_sigmas") != "use":
        sigmas = _flagged(config, sigmas, given is None)
    times = sigmas * schedule.scale
    if request.timesteps is not None and request.sigmas is not None:  # CogView4, GLM-Image: what is told is unshifted
        told = np.asarray(request.timesteps, dtype=np.float64)
        times = told[:steps] if name is None else schedule.scale * shift.undo(sigmas)
    return sigmas[:steps], times[:steps]


def _given(schedule: FlowSchedule, request: GridRequest) -> Array | None:
    """The sigmas before any shift that were passed, or that the passed timesteps mean."""
    if request.sigmas is not None:
        sigmas = without_end(request.sigmas, "sigmas")
        if sigmas.max() > 1:
            raise ValueError(f"sigmas = {sigmas.tolist()}: on a flow-matching model they are in (0, 1]")
        return sigmas
    if request.timesteps is None:
        return None
    times = checked_times(schedule, request.timesteps, 0.0, schedule.scale)
    if schedule.inverted and times[0] < times[-1]:  # as that model is told them; falling ones are diffusers' there
        times = schedule.scale - times
    return without_end((times / schedule.scale).tolist(), "timesteps")


def _shift_factor(config: Mapping[str, Any], mu: float | None) -> float:
    if not config.get("use_dynamic_shifting"):
        return static_shift(config)
    if mu is not None:
        return dynamic_shift(mu, config.get("time_shift_type", "exponential"))
    if "base_shift" in config or _like_unipc(config):
        raise ValueError(
            "mu = None, but the config has use_dynamic_shifting = True: give set_timesteps a mu, or from_config "
            "use_dynamic_shifting=False and a shift"
        )
    return static_shift(config)


def _own_sigmas(config: Mapping[str, Any], schedule: FlowSchedule, count: int, factor: float) -> Array:
    """The sigmas that diffusers' class for the config would shift."""
    last = 1.0 / (schedule.train_steps or 1000)
    if is_multistep(config):  # UniPC begins at noise, DPM-Solver one training step below
        ramp = np.linspace(1.0, last, count + 1)
        return ramp[:-1] if _like_unipc(config) else (1.0 - ramp)[:0:-1]
    # FlowMatchEulerDiscreteScheduler ends at its smallest, already shifted sigma, and shifts again.
    once = 1.0 if config.get("use_dynamic_shifting") else factor
    return np.linspace(1.0, float(shift_sigmas(last, once)), count)


def _between(config: Mapping[str, Any], name: str, sigmas: Array, count: int) -> Array:
    """The level grid `name` from the first to the last of `sigmas`, or from `sigma_max` to `sigma_min` if given."""
    noisy, clean = (
        float(end) if given is None else _sigma(config, float(given))
        for end, given in ((sigmas[0], config.get("sigma_max")), (sigmas[-1], config.get("sigma_min")))
    )
    levels = Levels(noisy, clean, float(np.clip(sigmas[1 % len(sigmas)], clean, noisy)), fraction=True)
    return LEVEL_GRIDS[name](levels, count, **chosen_options(config, name))


def _flagged(config: Mapping[str, Any], sigmas: Array, own: bool) -> Array:
    """What diffusers' flag, if one is set, makes of the shifted `sigmas`; `own` if they were not passed."""
    name = flagged_grid(config)
    if name is None:
        return sigmas
    if not (name == "karras" and own and _like_unipc(config)):
        return _between(config, name, sigmas, len(sigmas))
    clean, noisy = ratio_range(config)  # Cosmos 2.5: in sigma / alpha, whatever the shift
    ratios = LEVEL_GRIDS[name](Levels(noisy, clean, clean), len(sigmas), **chosen_options(config, name))
    return np.asarray(ratios / (1 + ratios))


def _end(schedule: FlowSchedule, config: Mapping[str, Any], request: GridRequest, sigmas: Array) -> float:
    """The final sigma: 0, or with `final_sigmas_type` "sigma_min" what it is in the class that the config is of."""
    if config.get("final_sigmas_type", "zero") == "zero":
        return 0.0
    if _like_unipc(config):
        return float(sigmas[-1])
    if is_multistep(config):
        return ratio_range(config)[0]
    return float(shift_sigmas(1 / (schedule.train_steps or 1000), _shift_factor(config, request.mu)))


def _sigma(config: Mapping[str, Any], level: float) -> float:
    """A configured sigma_min or sigma_max as sigma: UniPC's are sigma / alpha."""
    return level / (1 + level) if is_multistep(config) else level


def _like_unipc(config: Mapping[str, Any]) -> bool:
    return is_multistep(config) and "predict_x0" in config
