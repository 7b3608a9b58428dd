"""Steps whose rows or tokens have times of their own: region diffusion, diffusion forcing, LTX's conditioning."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedulers.layout import Layout, compiled
from fastsample.schedulers.levels import marginals
from fastsample.schedulers.live_config import Key
from fastsample.schedulers.run import Run
from fastsample.schedulers.setup import Setup, setup_of
from fastsample.schedules.flow import FlowSchedule
from fastsample.tables.table import Combination, Step


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


def one_time(timestep: Any) -> Any:
    """The one time of a timestep; None where rows or tokens may have their own. Nothing on a device is read."""
    if not isinstance(timestep, Tensor) or timestep.ndim == 0:
        return timestep
    first = timestep[(0,) * timestep.ndim] if timestep.numel() else timestep
    if timestep.numel() == 1 or not any(timestep.stride()):
        return first
    return first if timestep.device.type == "cpu" and bool((timestep == first).all()) else None


def step_rows(
    run: Run, times: Tensor, sample: Tensor, output: Tensor, adjust: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, Run]:
    """The next sample, the clean sample predicted, and the run, where row or token i is at the time `times[i]`.

    `times` is [B] or [B, T] for a sample [B, ..] or [B, T, ..]; none is read. Each element goes to the next cleaner
    point of the run's grid, from its own point of the grid or from between two; one that is clean stays. An element
    that was at the point before in the last call goes on with its history, any other takes a first-order step.
    `adjust`, where given, clips the clean sample. Raises ValueError for other shapes and for solvers that carry more.
    """
    layout, setup = run.laid.layout, run.laid.setup
    if layout is None:
        raise ValueError("num_inference_steps = None: call set_timesteps before step")
    while times.ndim > 1 and times.shape[-1] == 1:
        times = times.squeeze(-1)
    if times.shape != sample.shape[: times.ndim]:
        raise ValueError(
            f"timestep has shape {tuple(times.shape)} for a sample of shape {tuple(sample.shape)}: give one for all, "
            "one a row [B] or one a token [B, T]"
        )
    dtype = accumulation_dtype(sample.dtype, output.dtype)
    tables = row_tables(setup, layout, sample.device, dtype)
    times = times.to(sample.device, dtype)
    slack = 1e-6 * abs(setup.schedule.noise_time - setup.schedule.clean_time)
    keys, own = tables.told, tables.sign * times
    target = torch.searchsorted(keys, (own + slack).contiguous(), right=True)
    index = (target - 1).clamp(min=0)
    placed = (target > 0) & ((keys[index] - own).abs() <= slack)

    between = times.clamp(min=0) if setup.schedule.kind == "vp" else times
    alpha, sigma = marginals(setup.schedule, setup.levels, between, sample.device, dtype)
    alpha = alpha * setup.schedule.data_scale
    if setup.schedule.kind == "vp":  # below the first timestep of training all is clean
        alpha, sigma = torch.where(times < 0, 1.0, alpha), torch.where(times < 0, 0.0, sigma)
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
    past: RowHistory | None = run.rows
    entry = torch.zeros_like(sample, dtype=dtype)
    if past is not None and past.index.shape == times.shape and past.entry.shape == sample.shape:
        goes_on = placed & (past.index == index - 1)
        weights = torch.where(goes_on[..., None], tables.full[index], weights)
        entry = past.entry

    def each(value: Tensor) -> Tensor:
        return value.reshape(*times.shape, *[1] * (sample.ndim - times.ndim))

    x, f = sample.to(dtype), output.to(dtype)
    scale = setup.schedule.data_scale
    data = torch.where(each(stays), x / scale if scale != 1 else x, scale * (each(a) * x + each(b) * f))
    clipped = data
    if adjust is not None:
        clipped = torch.where(each(stays), data, adjust(data))
        f = torch.where(each(stays), f, (clipped / scale - each(a) * x) / each(b))
    following = each(weights[..., 0]) * x + each(weights[..., 1]) * f + each(weights[..., 2]) * entry
    following = torch.where(each(stays), x, following)
    made = each(tables.entry[index, 0]) * x + each(tables.entry[index, 1]) * f
    rows = RowHistory(torch.where(placed, index, -2), made)
    return following.to(sample.dtype), clipped.to(sample.dtype), replace(run, rows=rows)


@functools.lru_cache(maxsize=16)
def row_tables(setup: Setup, layout: Layout, device: torch.device, dtype: torch.dtype) -> RowTables:
    """The columns of a layout. Raises ValueError for solvers whose steps read more than one step before them."""
    steps = compiled(setup, layout, 0, 0.0).table.steps
    if layout.order > 1 or any(_reads_more(step) for step in steps):
        raise ValueError(
            f"timestep has a value for each row or token: {setup.name!r} draws noise or carries more than one step's "
            "history; use DDIMScheduler, or DPMSolverScheduler of order 2"
        )
    plain = setup_of("ddim", Key({}), setup.config, setup.leading_from_zero) if setup.name != "ddim" else setup
    first = compiled(plain, layout, 0, 0.0).table.steps
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
        column([step.data for step in steps]),
    )


def _reads_more(step: Step) -> bool:
    """Whether a step is stochastic, has states, or reads more than the entry before it."""
    entry = step.entry or Combination()
    readers = (step.next.noise, step.states, step.next.states, any(step.next.history[1:]), any(entry.history))
    return any(map(bool, readers))


def _data_weights(alpha: Tensor, sigma: Tensor, output_type: str) -> tuple[Tensor, Tensor]:
    """`(a, b)` of :func:`fastsample.tables.prediction.prediction_weights` for data, at many points at once."""
    if output_type == "sample":
        return torch.zeros_like(alpha), torch.ones_like(alpha)
    if output_type == "epsilon":
        return 1 / alpha, -sigma / alpha
    sign = -1.0 if output_type.startswith("minus_") else 1.0
    if output_type in ("flow_prediction", "minus_flow"):
        p = q = torch.full_like(alpha, sign)
    else:
        size = torch.hypot(alpha, sigma)
        p, q = sign * alpha / size, sign * sigma / size
    norm = alpha * p + sigma * q
    return p / norm, -sigma / norm
