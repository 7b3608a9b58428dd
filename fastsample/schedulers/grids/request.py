"""What is asked of a grid: the arguments of `set_timesteps`, and the grid that a config names."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsample.schedules.base import Array, Node, NoiseSchedule
from fastsample.schedules.grids import FIXED_GRIDS, LEVEL_GRIDS, check_steps, grid_names, grid_options, min_time
from fastsample.solvers.registry import nearest
from fastsample.wording import counted

FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}
"""diffusers' own keys that name a grid."""


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
                raise ValueError(f"{name} = {list(given)}: give at least one finite value")
            if self.steps is not None and len(given) != self.steps:
                values = counted(len(given), "value")
                raise ValueError(f"num_inference_steps = {self.steps}, but {name} has {values}: give one of them")
        if self.timesteps is not None and self.sigmas is not None and len(self.timesteps) != len(self.sigmas):
            raise ValueError(f"timesteps has {counted(len(self.timesteps), 'value')}, but sigmas {len(self.sigmas)}")
        if self.steps is None and self.timesteps is None and self.sigmas is None:
            raise ValueError("num_inference_steps = None: give it, or timesteps, or sigmas")

    @property
    def count(self) -> int:
        """The number of evaluations asked for."""
        if self.steps is not None:
            return self.steps
        given = self.sigmas if self.sigmas is not None else self.timesteps
        assert given is not None
        return len(given)


def flagged_grid(config: Mapping[str, Any]) -> str | None:
    """The grid that one of diffusers' flags names. Raises ValueError when several are set."""
    flags = [flag for flag in FLAGS if config.get(flag)]
    if len(flags) > 1:
        raise ValueError(f"{' and '.join(flags)} are all set: leave at most one")
    return FLAGS[flags[0]] if flags else None


def grid_name(config: Mapping[str, Any], default: str) -> str:
    """`timestep_grid` of the config, or the grid that diffusers' flags or `timestep_spacing` mean."""
    named, flagged = config.get("timestep_grid"), flagged_grid(config)
    name = named or flagged or default
    if name not in grid_names():
        key, near = (
            "timestep_grid" if named else "timestep_spacing",
            nearest(str(name).partition("(")[0], grid_names()),
        )
        asked = f"did you mean {', '.join(near)}?" if near else f"use one of {', '.join(grid_names())}"
        raise ValueError(f"{key} = {name!r} is unknown: {asked}")
    return str(name)


def check_grid(config: Mapping[str, Any], kind: str) -> None:
    """Raise ValueError unless the grid that a config names exists, and what it says of the grid has an effect."""
    spacing = str(config.get("timestep_spacing", "linspace"))
    grid_name({"timestep_spacing": spacing}, spacing)
    name = grid_name(config, spacing)
    if name in FIXED_GRIDS:
        FIXED_GRIDS[name].check(name, kind)
    named, flagged = config.get("timestep_grid"), flagged_grid(config)
    options = config.get("grid_options") or {}
    known = grid_options(named or flagged or spacing)
    for key, value in options.items():
        if key not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ValueError(f"grid_options: {key} = {value!r} is unknown; the {name} grid {has}")
        if not isinstance(value, (int, float)) or not 0 < value < np.inf:
            raise ValueError(f"grid_options: {key} = {value!r}: give a positive number")
    if kind == "edm":  # its range and rho are the model's
        return
    low, high = config.get("sigma_min"), config.get("sigma_max")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"sigma_min, sigma_max = {low}, {high}: need sigma_min < sigma_max")
    by_level = name in LEVEL_GRIDS or flagged is not None  # a flag's range goes with the flag where a name wins
    for key, value in (("sigma_min", low), ("sigma_max", high)):
        if value is not None and not by_level:
            raise ValueError(
                f"{key} = {value}: the {name} grid is laid out in time; leave it out, or name one of "
                f"{', '.join(LEVEL_GRIDS)}"
            )
    if float(config.get("rho") or 7.0) != 7 and "karras" not in (name, flagged):
        raise ValueError(f"rho = {config['rho']}: it is of the karras grid, and the grid here is {name}")


def chosen_options(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The options of the grid `name` that the config sets: `grid_options`, and `rho` of "karras"."""
    rho = {"rho": float(config.get("rho") or 7.0)} if name == "karras" else {}
    return {**rho, **(config.get("grid_options") or {})}


def checked_times(schedule: NoiseSchedule, timesteps: Sequence[float], first: float, last: float) -> Array:
    """Explicit `timesteps` of a model that is trained at `first` to `last`. Raises ValueError for others."""
    times = np.asarray(timesteps, dtype=np.float64)
    slack = 1e-5 * (last - first)  # times come back from float32
    outside = np.flatnonzero((times < first - slack) | (times > last + slack))
    if len(outside):
        raise ValueError(
            f"timesteps[{outside[0]}] = {times[outside[0]]:g}: the model was trained at {first:g} to {last:g}"
        )
    return np.clip(times, first, last)


def without_end(values: Sequence[float], name: str) -> Array:
    """Explicit noise levels without a final 0, which is appended to every grid. Raises ValueError if none is left."""
    levels = np.asarray(values, dtype=np.float64)
    levels = levels[:-1] if levels[-1] == 0 else levels
    if len(levels) == 0 or np.any(levels <= 0):
        raise ValueError(f"{name} = {levels.tolist()}: every value before the last must be above 0")
    return levels


def final_node(schedule: NoiseSchedule, config: Mapping[str, Any]) -> Node:
    """Where the grid ends: clean data, or the least noisy time of training."""
    final = config.get("final_sigmas_type", "zero")
    return schedule.node(schedule.clean_time if final == "zero" else min_time(schedule))


def before_the_end(nodes: Sequence[Node], final: Node, name: str | None) -> list[Node]:
    """The evaluations without those that coincide with the end.

    Raises ValueError where none is left, or where the grid `name` (None: values that were passed) collapses.
    """
    kept = [node for node in nodes if node.lam < final.lam - 1e-9]
    if not kept:
        raise ValueError(f"every time of the grid is at or below the final sigma = {final.sigma:g}: use 'zero'")
    repeated = any(not one.lam < two.lam for one, two in itertools.pairwise(kept))
    if name is not None and (repeated or len(kept) < len(nodes) - 1):
        raise ValueError(
            f"num_inference_steps = {len(nodes)}: the {name} grid has only {len({node.lam for node in kept})} "
            "different times on this model; ask for fewer, or for another timestep_grid"
        )
    return kept
