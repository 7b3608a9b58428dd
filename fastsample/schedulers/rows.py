"""Steps whose rows or tokens have times of their own: region diffusion, diffusion forcing, LTX's conditioning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedulers.layout import Layout, compiled
from fastsample.schedulers.levels import marginals
from fastsample.schedulers.run import Run
from fastsample.schedulers.setup import Setup
from fastsample.schedules.flow import FlowSchedule
from fastsample.solvers import build_table_on_nodes
from fastsample.tables.prediction import output_axes
from fastsample.tables.step import Combination, Step


@dataclass(frozen=True, eq=False)
class RowHistory:
    """What rows or tokens carry: the index of each one's last step (-2: off the grid), and its history entry."""

    index: Tensor
    entry: Tensor


@dataclass(frozen=True, eq=False)
class RowTables:
    """Columns over the evaluations of a grid, on a device.

    `told`, the times, rising; `alpha` and `sigma` with those of the end; `fresh`, the weights of (sample, output) in
    a first-order step, and `full` those of (sample, output, history) in the solver's; `entry` and `data` those of
    (sample, output) in what enters the history and in the clean sample.
    """

    told: Tensor
    sign: float
    alpha: Tensor
    sigma: Tensor
    fresh: Tensor
    full: Tensor
    entry: Tensor
    data: Tensor


def one_time(timestep: Any, run: Run) -> Any:
    """The one time of a timestep; None where rows or tokens may have their own. Nothing on a device is read.

    Unless :func:`serves` is not so: then it is, to see whether all are the same.
    """
    if not isinstance(timestep, Tensor) or timestep.ndim == 0:
        return timestep
    if timestep.numel() == 1:
        return timestep.flatten()[0]
    if serves(run):  # those that a tensor has been spread to are one, but for rows that have had their own
        spread = timestep.numel() and not any(timestep.stride()) and run.rows is None
        return timestep[(0,) * timestep.ndim] if spread else None
    values = timestep.cpu().flatten()
    return values[0] if len(values) and bool((values == values[0]).all()) else None


def serves(run: Run) -> bool:
    """Whether rows or tokens at times of their own keep the solver's order: see :func:`step_rows`."""
    return run.laid.layout is not None and _carries_one_entry(run.laid.setup, run.laid.layout)


def step_rows(
    run: Run, times: Tensor, sample: Tensor, output: Tensor, adjust: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, RowHistory]:
    """The next sample, the clean sample predicted, and what is carried, with row or token i at the time `times[i]`.

    `times` is [B] or [B, T] for a sample [B, ..] or [B, T, ..]; none is read. Each element goes to the next cleaner
    point of the run's grid, from its own point of the grid or from between two; one that is clean stays. An element
    that was at the point before in the last call goes on with its history, any other takes a first-order step; of
    solvers that carry more than one entry (not :func:`serves`) all do. `adjust`, where given, clips the clean sample.
    Raises ValueError for other shapes, and for solvers with stages.
    """
    layout, setup = run.laid.layout, run.laid.setup
    if layout is None:
        raise ValueError("num_inference_steps = None: call set_timesteps before step")
    if layout.order > 1:
        raise ValueError(
            f"timestep has a value for each row or token, and {setup.name!r} has stages: use DDIMScheduler"
        )
    if setup.rise:
        raise ValueError("timestep has a value for each row or token: an inverse scheduler takes one for all")
    times = _shaped(times, sample)
    dtype = accumulation_dtype(sample.dtype, output.dtype)
    tables = row_tables(setup, layout, sample.device, dtype)
    times = times.to(sample.device, dtype)
    slack = _slack(setup)
    keys, own = tables.told, tables.sign * times
    target = torch.searchsorted(keys, (own + slack).contiguous(), right=True)
    index = (target - 1).clamp(min=0)
    placed = (target > 0) & ((keys[index] - own).abs() <= slack)
    alpha, sigma = _levels(setup, times, sample.device, dtype)
    alpha = torch.where(placed, tables.alpha[index], alpha)
    sigma = torch.where(placed, tables.sigma[index], sigma)
    to_alpha, to_sigma = tables.alpha[target], tables.sigma[target]
    stays = to_sigma * alpha >= sigma * to_alpha

    a, b = _data_weights(alpha, sigma, setup.output_type)
    a, b = torch.where(placed, tables.data[index, 0], a), torch.where(placed, tables.data[index, 1], b)
    ratio = to_sigma / sigma
    onto = to_alpha - alpha * ratio
    weights = torch.stack([ratio + onto * a, onto * b, torch.zeros_like(ratio)], -1)
    weights = torch.where(placed[..., None], tables.fresh[index], weights)
    past, entry = _history(run, times, dtype), torch.zeros_like(sample, dtype=dtype)
    if past is not None and past.index.shape == times.shape and past.entry.shape == sample.shape:
        weights = torch.where((placed & (past.index == index - 1))[..., None], tables.full[index], weights)
        entry = past.entry

    def each(value: Tensor) -> Tensor:
        return value.reshape(*times.shape, *[1] * (sample.ndim - times.ndim))

    x, f, rests = sample.to(dtype), output.to(dtype), each(stays)
    scale = setup.schedule.data_scale
    data = torch.where(rests, x, scale * (each(a) * x + each(b) * f))
    if adjust is not None:
        data = torch.where(rests, data, adjust(data))
        f = torch.where(rests, f, (data / scale - each(a) * x) / each(b))
    following = each(weights[..., 0]) * x + each(weights[..., 1]) * f + each(weights[..., 2]) * entry
    made = each(tables.entry[index, 0]) * x + each(tables.entry[index, 1]) * f
    carried = RowHistory(torch.where(placed, index, -2), made)
    return torch.where(rests, x, following).to(sample.dtype), data.to(sample.dtype), carried


def _history(run: Run, times: Tensor, dtype: torch.dtype) -> RowHistory | None:
    """What rows carry: of their own steps, or of steps that all have made together."""
    if not serves(run):
        return None
    if isinstance(run.rows, RowHistory):
        return run.rows
    stored = run.lanes[0].runner.stored if len(run.lanes) == 1 else ()
    if len(stored) != 1 or stored[0] is None or run.step_index is None:
        return None
    last = run.step_index - 1
    scale = run.lanes[0].runner.lowered.steps[last - run.start].scales[0] or 0.0
    return RowHistory(torch.full_like(times, last, dtype=torch.int64), scale * stored[0].to(dtype))


def apart(run: Run, timestep: Any, times: Tensor, sample: Tensor) -> Tensor:
    """Which tokens are, or have been in this run, at another time than `timestep`, shaped to choose from `sample`.

    What a solver carries of them is of that time, so that they go on by first-order steps.
    """
    times = _shaped(times, sample)
    here = torch.as_tensor(timestep, device=times.device)
    away = (times - here).abs() > _slack(run.laid.setup)
    away = away.reshape(*times.shape, *[1] * (sample.ndim - times.ndim)).to(sample.device)
    known = isinstance(run.rows, Tensor) and run.rows.shape == away.shape
    return away | run.rows if known else away


def _shaped(times: Tensor, sample: Tensor) -> Tensor:
    """`times` as [B] or [B, T]; ValueError where these are not the sample's."""
    while times.ndim > 1 and times.shape[-1] == 1:
        times = times.squeeze(-1)
    if times.shape != sample.shape[: times.ndim]:
        raise ValueError(
            f"timestep has shape {tuple(times.shape)} for a sample of shape {tuple(sample.shape)}: give one for all, "
            "one a row [B] or one a token [B, T]"
        )
    return times


def _slack(setup: Setup) -> float:
    """By how much times may differ for rounding."""
    return 1e-6 * abs(setup.schedule.noise_time - setup.schedule.clean_time)


def _levels(setup: Setup, times: Tensor, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """alpha and sigma where the network is told `times`; on VP models a negative time is clean data."""
    vp = setup.schedule.kind == "vp"
    alpha, sigma = marginals(setup.schedule, setup.levels, times.clamp(min=0) if vp else times, device, dtype)
    if vp:
        alpha, sigma = torch.where(times < 0, 1.0, alpha), torch.where(times < 0, 0.0, sigma)
    return alpha * setup.schedule.data_scale, sigma


@functools.lru_cache(maxsize=16)
def row_tables(setup: Setup, layout: Layout, device: torch.device, dtype: torch.dtype) -> RowTables:
    """The columns of a layout."""
    steps = compiled(setup, layout, 0, 0.0).table.steps
    first = build_table_on_nodes("ddim", layout.nodes, prediction_type=setup.output_type).steps
    told = np.array([node.time for node in layout.nodes[:-1]])
    sign = 1.0 if isinstance(setup.schedule, FlowSchedule) and setup.schedule.inverted else -1.0

    def column(rows: object) -> Tensor:
        return torch.from_numpy(np.asarray(rows, dtype=np.float64)).to(dtype).to(device)

    return RowTables(
        column(sign * told),
        sign,
        column([node.alpha for node in layout.nodes]),
        column([node.sigma for node in layout.nodes]),
        column([(step.next.sample, step.next.output, 0.0) for step in first]),
        column([(step.next.sample, step.next.output, *(step.next.history[:1] or (0.0,))) for step in steps]),
        column([(step.entry.sample, step.entry.output) if step.entry else (0.0, 0.0) for step in steps]),
        column([step.data for step in first]),
    )


@functools.lru_cache(maxsize=64)
def _carries_one_entry(setup: Setup, layout: Layout) -> bool:
    """Whether no step is stochastic, has states, or reads more than the entry before it."""

    def reads_more(step: Step) -> bool:
        entry = step.entry or Combination()
        return bool(step.next.noise or step.states or step.next.states or any(step.next.history[1:] + entry.history))

    return (
        layout.order == 1 and not setup.rise and not any(map(reads_more, compiled(setup, layout, 0, 0.0).table.steps))
    )


def _data_weights(alpha: Tensor, sigma: Tensor, output_type: str) -> tuple[Tensor, Tensor]:
    """`(a, b)` of :func:`fastsample.tables.prediction.prediction_weights` for data, at many points at once."""
    if output_type == "sample":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if output_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    p, q = output_axes(alpha, sigma, output_type)
    norm = alpha * p + sigma * q
    return p / norm, -sigma / norm
