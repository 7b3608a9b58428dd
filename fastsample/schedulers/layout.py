"""A run's grid laid out: its points, the times that the network is told, and the tables on it; all of it kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.schedulers.grid import GridRequest, make_nodes, training_grid, whole_timesteps
from fastsample.schedulers.grids.defaults import is_pipeline_default
from fastsample.schedulers.grids.request import final_node
from fastsample.schedulers.grids.rising import rising_nodes
from fastsample.schedulers.setup import Setup
from fastsample.schedules.base import Node
from fastsample.schedules.edm import EDMSchedule
from fastsample.schedules.flow import FlowSchedule
from fastsample.tables.preset import Entry
from fastsample.tables.spans import Span, noise_spans
from fastsample.tables.table import Table


@dataclass(frozen=True, eq=False)
class Compiled:
    """A table, lowered. `carries` says whether a step reads anything of the steps before it, their path of noise too.

    `spans` are those of each step's noise.
    """

    table: Table
    carries: bool
    spans: tuple[Span, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """`grid`, the boundaries of the steps; `nodes`, the evaluations and the end; `times`, what the network is told.

    `times` are rounded as the tensor `timesteps`, whose values they are; `table` is `setup`'s on the whole grid.
    """

    setup: Setup = field(repr=False)
    table: Table = field(repr=False)
    grid: tuple[Node, ...]
    nodes: tuple[Node, ...]
    order: int
    timesteps: Tensor
    sigmas: Tensor
    times: tuple[float, ...]
    starts: dict[float, int] = field(repr=False)  # the evaluation that starts a step, by its time
    tuned: bool = False  # whether the table is a preset's

    def __deepcopy__(self, memo: dict[int, Any]) -> Layout:
        return self

    def __len__(self) -> int:
        return len(self.times)

    def nearest(self, time: float) -> int:
        """The evaluation that starts a step whose time is nearest to `time`."""
        return min(self.starts.values(), key=lambda index: abs(self.times[index] - time))


def layout_of(setup: Setup, grid: Sequence[Node]) -> Layout:
    """The layout of the step boundaries `grid`. Raises ValueError where noise does not fall along them."""
    grid = tuple(grid)
    return _laid_by(setup, setup.table(grid), grid)


def _laid_by(setup: Setup, table: Table, grid: tuple[Node, ...], tuned: bool = False) -> Layout:
    """The layout of `table`, whose steps go along the boundaries `grid`."""
    nodes = (*[step.node for step in table.steps], grid[-1])
    told = [node.time for node in nodes[:-1]]
    whole = whole_timesteps(setup.schedule, setup.config.values) and not any(time % 1 for time in told)
    timesteps = torch.tensor(told, dtype=torch.int64 if whole else torch.float32, device="cpu")
    sigmas = torch.tensor([setup.schedule.level(node) for node in nodes], dtype=torch.float32, device="cpu")
    times = tuple(map(float, timesteps.tolist()))
    starts = {times[index]: index for index in reversed(range(0, len(times), setup.order))}
    return Layout(setup, table, grid, nodes, setup.order, timesteps, sigmas, times, starts, tuned)


@functools.lru_cache(maxsize=64)
def lay_out(setup: Setup, request: GridRequest) -> Layout:
    """The layout that `request` asks for; ValueError where it asks for none."""
    entry = _entry_for(setup, request)
    if entry is not None:
        table = entry.table
        return _laid_by(setup, table, (*[step.node for step in table.steps], table.steps[-1].target), tuned=True)
    nodes = make_nodes(setup.schedule, setup.config.values, request)
    return layout_of(setup, rising_nodes(setup.schedule, nodes, setup.rise) if setup.rise else nodes)


def _entry_for(setup: Setup, request: GridRequest) -> Entry | None:
    """The tuned table for `request`: for its number of evaluations, and where it does not place them by itself."""
    schedule, sigmas = setup.schedule, request.sigmas
    if setup.preset is None or request.timesteps is not None:
        return None
    if sigmas is not None and not (
        schedule.kind == "flow" and is_pipeline_default(np.asarray(sigmas), schedule.train_steps)
    ):
        return None
    return setup.preset.entry(request.count)


@functools.lru_cache(maxsize=64)
def compiled(setup: Setup, layout: Layout, start: int, eta: float) -> Compiled:
    """The table of the steps from evaluation `start` on: a start inside the grid warms up there."""
    step, stage = divmod(start, layout.order)
    if stage:
        raise ValueError(
            f"begin_index = {start} (timestep = {layout.times[start]:g}) is a stage: start at a multiple of order = "
            f"{layout.order}"
        )
    laid_out = layout.setup is setup and not start and not eta
    table = layout.table if laid_out else setup.table(layout.grid[step:], eta)
    follows = table.stochastic and setup.brownian
    return Compiled(table, follows or bool(table.lowered.empty), noise_spans(table))


@dataclass(slots=True, eq=False)
class Laid:
    """A layout in use, with the tensors that the caller sees; before any `set_timesteps` no layout."""

    setup: Setup
    layout: Layout | None
    timesteps: Tensor
    sigmas: Tensor
    _pointer: int = field(init=False)
    _size: int = field(init=False)  # bytes of an entry of `timesteps`
    _count: int = field(init=False)
    _counted: bool = field(init=False)  # whether torch counts what is written into the tensors
    _written: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self._size, self._count = self.timesteps.element_size(), self.timesteps.numel()
        self._pointer = self.timesteps.data_ptr() if self.timesteps.is_contiguous() else 0
        self._counted = not (self.timesteps.is_inference() or self.sigmas.is_inference())
        self._written = self._written_now()

    def _written_now(self) -> tuple[int, int]:
        return (self.timesteps._version, self.sigmas._version) if self._counted else (0, 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Laid:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Laid, (self.setup, self.layout, self.timesteps, self.sigmas)

    def compiled(self, start: int, eta: float) -> Compiled:
        """The table from evaluation `start` on, with steps of `eta`."""
        assert self.layout is not None
        return compiled(self.setup, self.layout, start, eta)

    def index_of_view(self, timestep: Tensor) -> int | None:
        """The evaluation whose time `timestep` is, where it is a view of `timesteps`: found without reading it."""
        timesteps = self.timesteps
        if not self._pointer or timestep.dtype is not timesteps.dtype or timestep.device != timesteps.device:
            return None
        index, rest = divmod(timestep.data_ptr() - self._pointer, self._size)
        return index if not rest and 0 <= index < self._count else None

    def holds(self, setup: Setup) -> bool:
        """Whether the setup is still this one, and nobody has written into the tensors."""
        return setup is self.setup and self._written_now() == self._written

    def under(self, setup: Setup) -> Laid:
        """The same run with another setup, and what was written into its tensors."""
        if self.layout is None:
            return before_any_run(setup)
        if setup.order != self.layout.order:
            raise ValueError(f"the config was changed to {setup.name!r}, of order {setup.order}: call set_timesteps")
        timesteps, sigmas = self._written_now()
        if timesteps != self._written[0]:
            return at_times(Laid(setup, self.layout, self.timesteps, self.sigmas), self.timesteps)
        if sigmas != self._written[1]:
            return at_levels(Laid(setup, self.layout, self.timesteps, self.sigmas), self.sigmas)
        return Laid(setup, self.layout, self.timesteps, self.sigmas)


def before_any_run(setup: Setup) -> Laid:
    """What is shown before `set_timesteps`: the times and levels of training."""
    times, levels = training_grid(setup.schedule, setup.config.values)
    dtype = torch.int64 if setup.schedule.kind == "vp" else torch.float32
    timesteps = torch.from_numpy(np.ascontiguousarray(times)).to(dtype)
    return Laid(setup, None, timesteps, torch.from_numpy(np.ascontiguousarray(levels)).float())


def laid(setup: Setup, layout: Layout, device: str | torch.device | None = None) -> Laid:
    """A layout with tensors of its own, the times on `device`."""
    timesteps = layout.timesteps.to("cpu" if device is None else device, copy=True)
    return Laid(setup, layout, timesteps, layout.sigmas.clone())


def at_times(laid: Laid, timesteps: Any) -> Laid:
    """The run laid anew at the times `timesteps`: points of its grid where they are times of it, else as trained.

    Raises ValueError where noise does not fall along them, or where they cannot be the evaluations of the solver.
    """
    setup = laid.setup
    _refuse_rising(setup, "timesteps")
    told = timesteps if isinstance(timesteps, Tensor) else torch.as_tensor(np.asarray(timesteps), device="cpu")
    values = [float(value) for value in told.flatten().tolist()]
    if not values:
        raise ValueError("timesteps = []: give at least one time")
    eps = torch.finfo(told.dtype).eps if told.dtype in (torch.float16, torch.bfloat16) else 0.0
    grid = [_point_told(laid, value, eps) for value in values[:: setup.order]]
    layout = layout_of(setup, [*grid, _end(laid)])
    if not np.allclose(layout.times, values, rtol=2.0**-8, atol=1e-3 * setup.schedule.noise_time):
        raise ValueError(
            f"timesteps = {values}: {setup.name!r} would evaluate at {list(layout.times)}; give set_timesteps its "
            "steps instead"
        )
    return Laid(setup, layout, told, layout.sigmas.clone())


def _point_told(laid: Laid, time: float, eps: float) -> Node:
    """The point of the run's grid that is told `time`, but for a rounding by `eps`, else the training schedule's."""
    layout = laid.layout
    if layout is not None:
        index = layout.nearest(time)
        if abs(layout.times[index] - time) <= eps * abs(time):
            return layout.nodes[index]
    return node_told(laid.setup, time)


def _end(laid: Laid) -> Node:
    """Where the run ends, or where a run of this config would."""
    setup = laid.setup
    if laid.layout is not None:
        return laid.layout.grid[-1]
    if setup.schedule.kind == "flow":
        return setup.schedule.node(setup.schedule.clean_time)
    return final_node(setup.schedule, setup.config.values)


def at_levels(laid: Laid, sigmas: Any) -> Laid:
    """The run laid anew at the noise levels `sigmas`, of every evaluation and of the end, as the property has them.

    Raises ValueError where they do not fall, or cannot be the evaluations of the solver.
    """
    setup = laid.setup
    _refuse_rising(setup, "sigmas")
    given = sigmas if isinstance(sigmas, Tensor) else torch.as_tensor(np.asarray(sigmas, dtype=np.float64))
    values = [float(value) for value in given.flatten().tolist()]
    if len(values) < 2 or not np.all(np.isfinite(values)):
        raise ValueError(f"sigmas = {values}: give at least one finite level and that of the end, 0 for clean data")
    nodes = [node_at_level(setup, value) for value in (*values[: -1 : setup.order], values[-1])]
    layout = layout_of(setup, nodes)
    if not np.allclose(layout.sigmas.numpy(), values, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"sigmas = {values}: {setup.name!r} would evaluate at {layout.sigmas.tolist()}; give set_timesteps its "
            "sigmas instead"
        )
    timesteps = layout.timesteps.to(laid.timesteps.device)
    return Laid(setup, layout, timesteps, given.detach().to("cpu", torch.float32, copy=True))


def from_time(laid: Laid, time: float, end: float | None = None) -> Laid:
    """The run laid anew to start at `time`, which need not be one of its grid, and (with `end`) to go there next."""
    assert laid.layout is not None
    _refuse_rising(laid.setup, f"timestep = {time:g}")
    setup, first = laid.setup, _point_told(laid, time, 0.0)
    rest = laid.layout.grid
    if end is not None:
        target = rest[-1] if end < laid.setup.schedule.first_time else _point_told(laid, end, 0.0)
        if target.lam <= first.lam:
            raise ValueError(f"prev_timestep = {end:g}: it must be less noisy than timestep = {time:g}; leave it out")
        rest = (target, *[node for node in rest if node.lam > target.lam])
    later = [node for node in rest if node.lam > first.lam]
    if not later or not first.sigma:
        raise ValueError(
            f"timestep = {time:g}: this run ends at {rest[-1].time:g}, so that no step is left from there"
        )
    layout = layout_of(setup, [first, *later])
    return Laid(setup, layout, layout.timesteps.to(laid.timesteps.device), layout.sigmas)


def _refuse_rising(setup: Setup, what: str) -> None:
    """Raise ValueError for a scheduler that goes from clean to noisy."""
    if setup.rise:
        raise ValueError(
            f"{what}: an inverse scheduler steps along the grid of set_timesteps alone; step at its timesteps"
        )


def node_told(setup: Setup, time: float) -> Node:
    """The point of training whose network is told `time`. Raises ValueError beyond the times of training."""
    schedule = setup.schedule
    low, high = sorted((schedule.first_time, schedule.noise_time))
    if schedule.kind != "edm" and not low - 1e-6 <= time <= high + 1e-6:  # EDM models take any level
        raise ValueError(
            f"timestep = {time:g}: the model was trained at times from {low:g} to {high:g}; give one of them"
        )
    return schedule.node_of(time)


def node_at_level(setup: Setup, level: float) -> Node:
    """The point whose entry in `sigmas` is `level`."""
    schedule = setup.schedule
    whole = whole_timesteps(schedule, setup.config.values)
    if isinstance(schedule, EDMSchedule):
        return schedule.node_at(level)
    if isinstance(schedule, FlowSchedule):
        sigma = 1 - level if schedule.inverted else level
        time = sigma * schedule.noise_time
        return schedule.node(time, model_time=float(np.floor(time)) if whole else time)
    if level == 0:
        return schedule.node(schedule.clean_time)
    time = float(schedule.time(-np.log(level)))
    return schedule.node(time, model_time=float(np.clip(np.round(time), 0, schedule.noise_time)))
