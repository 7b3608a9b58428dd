"""What a sampler's name means, k-diffusion's, ComfyUI's or our own, and its table on a caller's sigmas."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastsample.interop.nodes import sigma_nodes
from fastsample.names.samplers import COMFYUI, GRID_LABELS, parse_sampler_name
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.solvers import available, build_table_on_nodes, get_solver
from fastsample.solvers.registry import check_choice
from fastsample.tables.spans import Span, noise_spans
from fastsample.tables.table import Table

SLOPE_SAMPLERS = frozenset(
    {
        *("euler", "heun", "heunpp2", "dpm_2", "lms", "dpmpp_2m", "res_multistep", "gradient_estimation"),
        *("ipndm", "ipndm_v", "deis", "uni_pc", "uni_pc_bh2", "dpm_fast"),
    }
)
"""Samplers that ComfyUI runs on flow models as on all others: x' = (x - D) / sigma holds there too."""
OWN_SPLITS = frozenset({"euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "lcm"})
"""Samplers that ComfyUI gives another split into step and noise on flow models, which needs no log-SNR."""
NOISES = ("auto", "brownian", "independent")


@dataclass(frozen=True)
class Plan:
    """What a sampler's name and options mean, as far as these do not depend on a call."""

    name: str
    solver: str
    options: tuple[tuple[str, Any], ...]
    on_flow: tuple[tuple[str, Any], ...]  # the options that are added on flow models
    published: bool  # k-diffusion's own name: orders as there, however long the steps
    slopes: bool  # on flow models too a step is one of data + sigma noise
    noise: str
    s_noise: float


def plan_of(name: str, noise: str, s_noise: float, options: Mapping[str, Any]) -> Plan:
    """What a name with options means; ValueError for unknown ones."""
    check_choice("noise", noise, NOISES)
    if isinstance(s_noise, (bool, str)) or not 0 <= s_noise < float("inf"):
        raise ValueError(
            f"s_noise = {s_noise!r}: give a finite number of at least 0 (1 adds the noise of the solver)"
        )
    plain = str(name).removeprefix("sample_")
    own = plain in available() and plain not in COMFYUI and plain not in SLOPE_SAMPLERS
    if own:
        solver, preset, on_flow = plain, {}, {}
    else:
        named = parse_sampler_name(_without_schedule(plain))
        if named.solver == "dpm-3s":
            raise ValueError(f"name = {name!r} lays out its own steps; use 'dpm-3s', which makes three calls a step")
        solver, preset, on_flow = named.solver, dict(named.options), dict(named.on_flow)
    if noise == "auto":
        noise = "brownian" if "sde" in solver else "independent"
    merged = tuple(sorted({**preset, **options}.items()))
    added = tuple((key, value) for key, value in on_flow.items() if key not in options)
    plan = Plan(plain, solver, merged, added, not own, plain in SLOPE_SAMPLERS, noise, s_noise)
    planned(plan, (3.0, 2.0, 1.0, 0.0), flow=False)  # wrong options die here
    return plan


def _without_schedule(name: str) -> str:
    """`name` itself; ValueError where it says more than a sampler."""
    for label in GRID_LABELS:
        stem = name[: -len(label)].strip(" _-")
        if name.lower().endswith(label.lower()) and stem:
            raise ValueError(f"name = {name!r} says a schedule, but the sigmas are the caller's: use {stem!r}")
    return name


class Planned(NamedTuple):
    """A table, between which points each step draws its noise, and which evaluations begin a step."""

    table: Table
    spans: tuple[Span, ...]
    starts: tuple[bool, ...]


@functools.lru_cache(maxsize=32)
def planned(plan: Plan, sigmas: tuple[float, ...], *, flow: bool) -> Planned:
    """The table of a plan on `sigmas`, made once. Raises ValueError where they make none."""
    schedule, nodes = sigma_nodes(sigmas, flow=flow)
    if flow and plan.slopes:
        slopes = sigma_nodes(sigmas, flow=False)
        table = _built(plan, *slopes)
        if not table.stochastic:  # with an eta it needs the true levels
            return _planned(table, slopes[1])
    return _planned(_built(plan, schedule, nodes), nodes)


def _planned(table: Table, nodes: Sequence[Node]) -> Planned:
    """A step begins with the last evaluation at its source: the ones before are stages of the steps before."""
    last = {step.node: index for index, step in enumerate(table.steps)}
    begins = {last[node] for node in nodes[:-1]}
    return Planned(table, noise_spans(table), tuple(index in begins for index in range(table.nfe)))


def _built(plan: Plan, schedule: NoiseSchedule, nodes: Sequence[Node]) -> Table:
    return build_table_on_nodes(
        plan.solver,
        nodes,
        schedule=schedule,
        prediction_type="sample",
        lower_final=False if plan.published else get_solver(plan.solver).lower_final,
        published=plan.published,
        **dict(plan.options),
        **(dict(plan.on_flow) if schedule.kind == "flow" else {}),
    )
