"""From a diffusers scheduler config and the arguments of `set_timesteps` to grid nodes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastsample.schedules.base import Array, Node, NoiseSchedule, require_falling_noise
from fastsample.schedules.discrete import DiscreteSchedule
from fastsample.schedules.edm import EDMSchedule, is_continuous
from fastsample.schedules.flow import FlowSchedule, dynamic_shift_sigmas, shift_sigmas, stretch_to_terminal
from fastsample.schedules.grids import GRIDS, TIME_GRIDS, check_steps, evaluation_times, min_time

INTEGER_GRIDS = ("linspace", "leading", "trailing")
# diffusers truncates the timesteps of the last two and rounds those of karras and lu; a peer must see the same ones.
TRUNCATED_GRIDS = ("quadratic", "log-snr", "uniform-sigma", "exponential", "beta")
FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}


def grid_name(config: Mapping[str, Any], default: str) -> str:
    """`timestep_grid` of the config, or the grid that diffusers' flags or `timestep_spacing` mean."""
    own = config.get("timestep_grid")
    flagged = [name for flag, name in FLAGS.items() if config.get(flag)]
    if len(flagged) > 1:
        flags = [flag for flag in FLAGS if config.get(flag)]
        raise ValueError(f"{' and '.join(flags)} are all set: leave at most one")
    name = own or (flagged[0] if flagged else default)
    if name not in GRIDS:
        raise ValueError(f"timestep_grid (or timestep_spacing) = {name!r} is unknown: use one of {', '.join(GRIDS)}")
    return str(name)


@dataclass(frozen=True)
class GridRequest:
    """The arguments of `set_timesteps`; ValueError on construction when they ask for no grid."""

    steps: int | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    mu: float | None = None
    leading_from_zero: bool = False  # "leading" as diffusers' single-step classes have it, from timestep 0 up

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_steps(self.steps, "num_inference_steps")
        for name, given in (("timesteps", self.timesteps), ("sigmas", self.sigmas)):
            if given is None:
                continue
            if len(given) == 0 or not np.all(np.isfinite(np.asarray(given, dtype=np.float64))):
                raise ValueError(f"{name} = {given!r}: give at least one finite value")
            if self.steps is not None and len(given) != self.steps:
                raise ValueError(
                    f"num_inference_steps = {self.steps}, but {name} has {len(given)} values: give one of them"
                )
        if self.steps is None and self.timesteps is None and self.sigmas is None:
            raise ValueError("num_inference_steps = None: give it, or timesteps, or sigmas")

    @property
    def count(self) -> int:
        """The number of evaluations asked for."""
        given = self.sigmas if self.sigmas is not None else self.timesteps
        return self.steps if self.steps is not None else len(given or ())


def make_nodes(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    """The evaluation nodes and the final one. Raises ValueError on arguments that make no grid."""
    make = {"vp": _vp_nodes, "flow": _flow_nodes, "edm": _edm_nodes}[schedule.kind]
    discards = config.get("discard_next_to_last_sigma") and request.timesteps is None and request.sigmas is None
    nodes = make(schedule, config, replace(request, steps=request.count + 1) if discards else request)
    if discards and len(nodes) > 2:
        nodes = (*nodes[:-2], nodes[-1])
    require_falling_noise(nodes)
    return nodes


def training_grid(schedule: NoiseSchedule, config: Mapping[str, Any]) -> tuple[Array, Array]:
    """The times and levels of training, noisiest first, and the level of clean data: shown before `set_timesteps`.

    As diffusers' classes have them: on flow models `num_train_timesteps` times down to the first above 0, shifted
    where the shift is static; on VP models every training timestep and sigma / alpha there.
    """
    if isinstance(schedule, FlowSchedule):
        shift = 1.0 if config.get("use_dynamic_shifting") else _static_shift(config)
        count = schedule.train_steps or 1000
        sigmas = shift_sigmas(np.arange(count, 0, -1) / count, shift)
        times, levels = sigmas * schedule.scale, np.append(sigmas, 0.0)
        return (schedule.scale - times, 1 - levels) if schedule.inverted else (times, levels)
    if isinstance(schedule, EDMSchedule):
        times = evaluation_times("karras", schedule, 1000)
        return times, np.append(schedule.sigma(times), 0.0)
    times = np.arange(schedule.train_steps - 1.0, -1.0, -1.0)
    with np.errstate(divide="ignore"):
        levels = np.minimum(schedule.sigma(times) / schedule.alpha(times), 2.0**12)
    return times, np.append(levels, 0.0)


def _static_shift(config: Mapping[str, Any]) -> float:
    """`flow_shift`, or `shift` where that is 1: not both, as one is often copied from the other."""
    own = float(config.get("flow_shift") or 1.0)
    return own if own != 1 else float(config.get("shift") or 1.0)


def _vp_nodes(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    final = _final_node(schedule, config)
    if request.sigmas is not None:  # on VP models diffusers means sigma / alpha
        values = np.asarray(request.sigmas, dtype=np.float64)
        return (*_nodes_of_times(schedule, schedule.time(-np.log(values[values > 0])), np.round), final)
    if request.timesteps is not None:
        return (*(schedule.node(float(t)) for t in request.timesteps), final)
    name = grid_name(config, config.get("timestep_spacing", "linspace"))
    if name in INTEGER_GRIDS:
        if name == "leading" and request.leading_from_zero:
            times = np.arange(request.count - 1.0, -1.0, -1.0) * (schedule.train_steps // request.count)
        else:
            times = evaluation_times(name, _clipped(schedule, config), request.count)
        times = np.round(times) + (config.get("steps_offset", 0) if name == "leading" else 0)
        nodes = [schedule.node(t) for t in np.clip(times, 0, schedule.noise_time).tolist()]
    else:
        times = evaluation_times(name, schedule, request.count)
        nodes = _nodes_of_times(schedule, times, np.floor if name in TRUNCATED_GRIDS else np.round)
    return (*_without_repeats(nodes, final), final)


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


def _edm_nodes(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    assert isinstance(schedule, EDMSchedule)
    final = _final_node(schedule, config)
    if request.sigmas is not None:
        return (*(schedule.node_at(sigma) for sigma in request.sigmas if sigma > 0), final)
    if request.timesteps is not None:
        return (*(schedule.node(float(time)) for time in request.timesteps), final)
    name = grid_name(config, _edm_spacing(config))
    if is_continuous(config) and name in INTEGER_GRIDS and not config.get("timestep_grid"):
        levels = [node.sbar for node in _vp_nodes(DiscreteSchedule.from_config(config), config, request)]
        return (*(schedule.node_at(level) for level in levels[:-1]), final)
    rho = {"rho": float(config.get("rho") or 7.0)} if name == "karras" else {}
    times = GRIDS[name](schedule, request.count, **rho)
    return (*_without_repeats([schedule.node(time) for time in times.tolist()], final), final)


def _edm_spacing(config: Mapping[str, Any]) -> str:
    if is_continuous(config):
        return str(config.get("timestep_spacing", "linspace"))
    return str(config.get("sigma_schedule") or "karras")


def _flow_nodes(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> tuple[Node, ...]:
    scale = schedule.noise_time
    sigmas = _flow_sigmas(schedule, config, request)
    times = sigmas * scale if request.timesteps is None else np.asarray(request.timesteps, dtype=np.float64)
    times = np.floor(times) if whole_timesteps(schedule, config) else times
    nodes = [
        schedule.node(sigma * scale, model_time=time)
        for sigma, time in zip(sigmas.tolist(), times.tolist(), strict=True)
        if sigma > 0
    ]
    return (*nodes, schedule.node(schedule.clean_time))


def _flow_sigmas(schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest) -> Array:
    """The sigmas of the evaluations, after shift, terminal stretch and karras / exponential / beta spacing."""
    shift, mu = _static_shift(config), request.mu
    dynamic, like_unipc = bool(config.get("use_dynamic_shifting")), is_multistep(config) and "predict_x0" in config
    if dynamic and mu is None and ("base_shift" in config or like_unipc):
        raise ValueError(
            "mu = None, but the config has use_dynamic_shifting = True: give set_timesteps a mu, or from_config "
            "use_dynamic_shifting=False and a shift"
        )
    name = config.get("timestep_grid")
    values = _unshifted_sigmas(schedule, config, request, 1.0 if dynamic else shift)
    if name is not None and name not in TIME_GRIDS:
        return values  # placed by noise level: a shift would move them away from it
    if dynamic and mu is not None:
        values = dynamic_shift_sigmas(values, mu, config.get("time_shift_type", "exponential"))
    else:
        values = shift_sigmas(values, shift)
    if config.get("shift_terminal"):
        values = stretch_to_terminal(values, float(config["shift_terminal"]))
    flagged = name is None and any(config.get(flag) for flag in FLAGS)
    if flagged and like_unipc and config.get("use_karras_sigmas") and request.sigmas is None:
        levels = _spaced("karras", *_ve_range(config), request.count)  # Cosmos 2.5
        return np.asarray(levels / (1 + levels), dtype=np.float64)
    if flagged:
        return _spaced(grid_name(config, "linspace"), values[0], values[-1], len(values))
    return np.minimum(values, 1 - 1e-6) if like_unipc else values


def _unshifted_sigmas(
    schedule: NoiseSchedule, config: Mapping[str, Any], request: GridRequest, shift: float
) -> Array:
    """What the shift is applied to: given values, a named grid, or the spacing of diffusers' class."""
    if request.sigmas is not None:
        return np.asarray(request.sigmas, dtype=np.float64)
    if request.timesteps is not None:
        return np.asarray(request.timesteps, dtype=np.float64) / schedule.noise_time
    if config.get("timestep_grid") is not None:
        return evaluation_times(grid_name(config, "linspace"), schedule, request.count) / schedule.noise_time
    last = 1.0 / (schedule.train_steps or 1000)
    if is_multistep(config):  # UniPC begins at noise, DPM-Solver one training step below
        ramp = np.linspace(1.0, last, request.count + 1)
        return ramp[:-1] if "predict_x0" in config else (1.0 - ramp)[:0:-1]
    # FlowMatchEulerDiscreteScheduler ends at its smallest, already shifted sigma, and shifts again.
    return np.linspace(1.0, float(shift_sigmas(last, shift)), request.count)


def is_multistep(config: Mapping[str, Any]) -> bool:
    """Whether a flow config is of diffusers' DPM-Solver or UniPC, which space and round their own way."""
    return bool(config.get("use_flow_sigmas")) and "shift" not in config


def whole_timesteps(schedule: NoiseSchedule, config: Mapping[str, Any]) -> bool:
    """Whether models of this config are called with whole timesteps, as diffusers' class for it does."""
    return schedule.kind == "vp" or (schedule.kind == "flow" and is_multistep(config))


def _ve_range(config: Mapping[str, Any]) -> tuple[float, float]:
    """The largest and smallest sigma / alpha: given, or those of the config's betas."""
    betas = DiscreteSchedule.from_config(config)
    low, high = config.get("sigma_min"), config.get("sigma_max")
    low = betas.node(betas.first_time).sbar if low is None else low
    return float(betas.level(betas.node(betas.noise_time)) if high is None else high), float(low)


def _spaced(name: str, first: float, last: float, count: int) -> Array:
    """`count` sigmas from the first to the last by diffusers' rule `name`."""
    ramp = np.linspace(0.0, 1.0, count)
    if name == "karras":
        return np.asarray((first ** (1 / 7) + ramp * (last ** (1 / 7) - first ** (1 / 7))) ** 7)
    if name == "beta":
        from scipy.stats import beta

        return np.asarray(last + beta.ppf(1.0 - ramp, 0.6, 0.6) * (first - last))
    return np.exp(np.linspace(np.log(first), np.log(last), count))


def _nodes_of_times(schedule: NoiseSchedule, times: Array, rounding: Any) -> list[Node]:
    """Nodes at `times` whose model times are whole timesteps, as trained."""
    whole = np.clip(rounding(times + 1e-6), 0, schedule.noise_time)
    return [schedule.node(t, model_time=m) for t, m in zip(times.tolist(), whole.tolist(), strict=True)]


def _final_node(schedule: NoiseSchedule, config: Mapping[str, Any]) -> Node:
    final = config.get("final_sigmas_type", "zero")
    if final not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type = {final!r}: use 'zero' or 'sigma_min'")
    return schedule.node(schedule.clean_time if final == "zero" else min_time(schedule))


def _without_repeats(nodes: Sequence[Node], final: Node) -> list[Node]:
    """Drop evaluations that are no noisier than the next (rounding can repeat a timestep) or than the end."""
    kept: list[Node] = []
    for node in nodes:
        if node.lam < final.lam - 1e-9 and (not kept or node.lam > kept[-1].lam):
            kept.append(node)
    if not kept:
        raise ValueError(f"every time of the grid is at or below the final sigma = {final.sigma:g}: use 'zero'")
    return kept
