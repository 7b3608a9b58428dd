"""What a sampler's name means, k-diffusion's, ComfyUI's or our own, and its table on a caller's sigmas."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastsample.interop.sigmas import sigma_nodes
from fastsample.names.samplers import COMFYUI, GRID_LABELS, SAMPLERS, parse_sampler_name
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.schedules.grids import grid_names
from fastsample.solvers import available, build_table_on_nodes, get_solver
from fastsample.solvers.registry import check_choice, plain
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
    bare = str(name).removeprefix("sample_").removeprefix("k_")
    own = bare in available() and bare not in COMFYUI and bare not in SLOPE_SAMPLERS
    if own:
        solver, preset, on_flow = bare, {}, {}
    else:
        named = parse_sampler_name(_without_schedule(bare))
        if named.solver == "dpm-3s":
            raise ValueError(f"name = {name!r} lays out its own steps; use 'dpm-3s', which makes three calls a step")
        solver, preset, on_flow = named.solver, dict(named.options), dict(named.on_flow)
    if noise == "auto":
        noise = "brownian" if "sde" in solver else "independent"
    merged = tuple(sorted({**preset, **options}.items()))
    added = tuple((key, value) for key, value in on_flow.items() if key not in options)
    slopes = not own and plain(bare) in map(plain, SLOPE_SAMPLERS)
    plan = Plan(bare, solver, merged, added, not own, slopes, noise, s_noise)
    planned(plan, (3.0, 2.0, 1.0, 0.0), flow=False)  # wrong options die here
    return plan


def _without_schedule(name: str) -> str:
    """`name` itself; ValueError where it says a sampler and a schedule."""
    known = {plain(sampler) for sampler in (*SAMPLERS, *available())}
    for label in (*GRID_LABELS, *grid_names()):
        stem = plain(name).removesuffix(plain(label))
        if plain(name) not in known and stem in known:
            raise ValueError(
                f"name = {name!r} says a schedule, but the sigmas are the caller's: use the sampler alone"
            )
    return name


class Planned(NamedTuple):
    """A table, between which points each step draws its noise, and which evaluations begin a step."""

    table: Table
    spans: tuple[Span, ...]
    starts: tuple[bool, ...]


@functools.lru_cache(maxsize=32)
def planned(plan: Plan, sigmas: tuple[float, ...], *, flow: bool, comfyui: bool = False) -> Planned:
    """The table of a plan on `sigmas`, made once; of `comfyui` as it is there. ValueError where they make none."""
    schedule, nodes = sigma_nodes(sigmas, flow=flow)
    if flow and plan.slopes:
        slopes = sigma_nodes(sigmas, flow=False)
        table = _built(plan, *slopes, comfyui)
        if not table.stochastic:  # with an eta it needs the true levels
            return _planned(table, slopes[1])
    return _planned(_built(plan, schedule, nodes, comfyui), nodes)


def _planned(table: Table, nodes: Sequence[Node]) -> Planned:
    """A step begins with the last evaluation at its source: the ones before are stages of the steps before."""
    last = {step.node: index for index, step in enumerate(table.steps)}
    begins = {last[node] for node in nodes[:-1]}
    return Planned(table, noise_spans(table), tuple(index in begins for index in range(table.nfe)))


def _built(plan: Plan, schedule: NoiseSchedule, nodes: Sequence[Node], comfyui: bool) -> Table:
    # in ComfyUI every step onto 0 ends on the data prediction; in k-diffusion Adams' method goes on
    ends_on_data = plan.published and nodes[-1].sigma == 0 and (comfyui or plain(plan.name) != "lms")
    return build_table_on_nodes(
        plan.solver,
        nodes,
        schedule=schedule,
        prediction_type="sample",
        lower_final=False if plan.published else get_solver(plan.solver).lower_final,
        euler_at_final=ends_on_data,
        published=plan.published,
        **dict(plan.options),
        **(dict(plan.on_flow) if schedule.kind == "flow" else {}),
    )


def is_flow(sampling: Any) -> bool:
    """Whether ComfyUI's `sampling` is of a model whose x is a mean of data and noise, which it calls CONST."""
    return any(kind.__name__ == "CONST" for kind in type(sampling).__mro__)
