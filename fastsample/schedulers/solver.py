"""Any registered solver as a diffusers scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.names.samplers import NamedSampler, parse_sampler_name
from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import configured
from fastsample.schedules.config import schedule_kind
from fastsample.solvers.registry import get_solver


@configured(solver_name="dpmpp-2m", solver_options=None)
class SolverScheduler(TableScheduler):
    """The solver registered as `solver_name`, with `solver_options` (a dict) of its own.

    A `stable_guidance` among them goes before the config's.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        return self.config.solver_name, dict(self.config.solver_options or {})


def create_scheduler(
    solver: str,
    config: Mapping[str, Any],
    *,
    grid: str | None = None,
    grid_options: Mapping[str, float] | None = None,
    dualfast: float = 0.0,
    noise: str = "independent",
    stable_guidance: float | str | None = "auto",
    **options: Any,
) -> SolverScheduler:
    """A scheduler that runs `solver` on the model that `config`, any diffusers scheduler's, describes.

    `grid` names a time grid (default: the config's own spacing), with `grid_options` of its own, e.g. a and b of
    "beta"; `dualfast` is the strength of DualFast's correction; `noise` "brownian" makes a stochastic solver follow
    one path of noise at any number of steps; `stable_guidance` is the guidance scale under which a multistep solver
    shall be stable ("auto": 7 on flow-matching models, no limit on others; None: no limit); `options` are the
    solver's, e.g. order=4, beta=0.8.
    Raises ValueError for unknown names and options.
    """
    extra: dict[str, Any] = {} if grid_options is None else {"grid_options": dict(grid_options)}
    if stable_guidance != "auto":
        extra["stable_guidance"] = stable_guidance
    return _create(solver, config, options, grid=grid, dualfast=dualfast, noise=noise, **extra)


def scheduler_from_name(
    name: str, config: Mapping[str, Any], *, grid: str | None = None, noise: str = "independent", **options: Any
) -> SolverScheduler:
    """The scheduler that AUTOMATIC1111, Forge, ComfyUI, stable-diffusion.cpp or RES4LYF calls `name`.

    E.g. "DPM++ 2M SDE Karras", "dpmpp_2m karras", "er_sde bong_tangent", "euler beta(0.5, 0.7)". Its time grid and
    last-step rule are those of the program; where the name has no schedule, `grid`, or the program's default one.
    Orders are as published on every model, whatever the guidance. `options` of the solver override the name's;
    `noise` as in :func:`create_scheduler`. Raises ValueError for names that cannot be served, with the reason, and
    for unknown ones, with the nearest.
    """
    named = parse_sampler_name(name)
    extra = {"grid_options": dict(named.grid_options)} if named.grid_options and grid is None else {}
    return _create(
        named.solver,
        config,
        {**named.options_of(schedule_kind(config)), **_last_step(named), **options},
        grid=grid or named.grid,
        # k-diffusion takes order 1 onto sigma = 0 and no lower order before it; UniPC lowers
        lower_order_final=get_solver(named.solver).always_lowers,
        discard_next_to_last_sigma=named.discard_penultimate,
        stable_guidance=None,
        noise=noise,
        **extra,
    )


def _last_step(named: NamedSampler) -> dict[str, bool]:
    """What makes the last step one of order 1, where the program's is and the solver's would not be."""
    return {"euler_at_final": True} if named.euler_at_final else {}


def _create(
    solver: str, config: Mapping[str, Any], options: Mapping[str, Any], grid: str | None, **extra: Any
) -> SolverScheduler:
    if grid is not None:
        extra["timestep_grid"] = grid
    # a solver by name is that solver, whatever preset the scheduler had whose config this is
    extra = {"preset": None, "preset_guidance": None, **extra}
    return SolverScheduler.from_config(  # type: ignore[no-any-return]
        config, solver_name=solver, solver_options=dict(options), **extra
    )
