"""DPM-Solver-12 and -23 with adaptive steps (Lu et al. 2022, arXiv:2206.00927, app. C): no grid, a tolerance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastsample.sampling.backend import Stored, accumulation_dtype
from fastsample.sampling.executor import Model, run_step
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.schedules.grids import min_time, noisiest_time
from fastsample.solvers import build_table_on_nodes
from fastsample.solvers.registry import check_choice
from fastsample.tables.lower import lower
from fastsample.tables.prediction import Space
from fastsample.tables.step import Step

COARSE = "coarse"
"""The state that holds the result of an order less."""


@dataclass(frozen=True)
class AdaptiveResult:
    """`sample` at the end, model `evaluations` made, and the times of the accepted steps with the first."""

    sample: Tensor
    evaluations: int
    rejected: int
    times: tuple[float, ...]


def integrate_adaptive(
    schedule: NoiseSchedule,
    model: Model,
    x: Tensor,
    *,
    order: int = 3,
    space: Space = "noise",
    prediction_type: str = "epsilon",
    start: float | None = None,
    end: float | None = None,
    rtol: float = 0.05,
    atol: float = 0.0078,
    first_step: float = 0.05,
    max_evaluations: int = 1000,
) -> AdaptiveResult:
    """Carry `x` from time `start` to `end` with steps chosen so that an embedded pair agrees.

    `order` 2 pairs orders 1 and 2 (DPM-Solver-12), 3 pairs 2 and 3 (-23); `space` "noise" is DPM-Solver, "data"
    DPM-Solver++. A step of h in log-SNR is accepted when the largest RMS over the batch of
    `(x_high - x_low) / max(atol, rtol max(|x_low|, |x_previous|))` is at most 1, and the next is
    0.9 h E^(-1/order). One batch shares its steps, so an image depends on its batch. Default times are the ends
    of training (from zero SNR, where log-SNR is -inf, the point at sigma / alpha = 4096); the end is noisy still.
    Raises ValueError on options out of range, RuntimeError when `max_evaluations` do not suffice or an output is not
    finite.
    """
    check_choice("order", order, (2, 3))
    check_choice("space", space, ("noise", "data"))
    for name, value in (("rtol", rtol), ("atol", atol), ("first_step", first_step)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} = {value!r}: give a positive number")
    now = schedule.node(noisiest_time(schedule) if start is None else start)
    last = schedule.node(min_time(schedule) if end is None else end)
    if not -math.inf < now.lam < last.lam < math.inf:
        raise ValueError(f"start, end = {now.time:g}, {last.time:g}: noise must fall between them, and be finite")
    family = "dpm" if space == "noise" else "dpmpp"
    if not bool(x.isfinite().all()):
        raise ValueError(f"x is not finite: give the sample at time {now.time:g}")
    h, previous, times, evaluations, rejected = min(first_step, last.lam - now.lam), x, [now.time], 0, 0
    output: Tensor | None = None
    while now.lam < last.lam - 1e-9:
        if evaluations + order > max_evaluations:
            raise RuntimeError(
                f"max_evaluations = {max_evaluations} reached at time {now.time:g}: raise it, rtol or atol"
            )
        if output is None:
            output, evaluations = model(x, now.time), evaluations + 1
        nodes = _stages(schedule, now, last, h, order)
        steps = _embedded(family, nodes, order, prediction_type)
        lowered = lower(steps, keep=[COARSE])
        outputs, sample = [output], x
        stored: Stored = lowered.empty
        for index, step in enumerate(lowered.steps):
            if index:
                outputs.append(model(sample, nodes[index].time))
            sample, stored = run_step(step, sample, outputs[index], stored)
        evaluations += order - 1
        coarse = lowered.final(COARSE, stored)
        error = _error(sample, coarse, previous, rtol, atol)
        if not math.isfinite(error):
            raise RuntimeError(_what_is_not_finite(outputs, nodes))
        if error <= 1:
            x, previous, now, output = sample, coarse, nodes[-1], None
            times.append(now.time)
        else:
            rejected += 1
        h = min(0.9 * h * max(error, 1e-10) ** (-1 / order), last.lam - now.lam)
    return AdaptiveResult(x, evaluations, rejected, tuple(times))


def _embedded(family: str, nodes: Sequence[Node], order: int, prediction_type: str) -> list[Step]:
    """The step of `order`, and in the state COARSE the one of an order less from the same evaluations."""
    high = build_table_on_nodes(f"{family}-{order}s", nodes, prediction_type=prediction_type)
    name = f"{family}-2s" if order == 3 else "ddim"
    low = build_table_on_nodes(name, [*nodes[: order - 1], nodes[-1]], prediction_type=prediction_type)
    steps = list(high.steps)
    with_coarse = {**steps[order - 2].states, COARSE: low.steps[-1].next}
    steps[order - 2] = replace(steps[order - 2], states=with_coarse)
    return steps


def _stages(schedule: NoiseSchedule, now: Node, last: Node, h: float, order: int) -> tuple[Node, ...]:
    """The nodes of a step of h, which goes to `last` at most: its start, stages and end."""
    lam = now.lam + h * np.arange(1, order + 1) / order
    ends = lam[-1] >= last.lam - 1e-9
    inner = [schedule.node(float(schedule.time(value))) for value in lam]
    return (now, *inner[:-1], last if ends else inner[-1])


def _error(high: Tensor, low: Tensor, previous: Tensor, rtol: float, atol: float) -> float:
    """The largest scaled RMS difference of the batch."""
    scale = torch.clamp(rtol * torch.maximum(low.abs(), previous.abs()), min=atol)
    scaled = ((high - low) / scale).to(accumulation_dtype(high.dtype))
    return float(scaled.flatten(1).square().mean(1).sqrt().max())


def _what_is_not_finite(outputs: Sequence[Tensor], nodes: Sequence[Node]) -> str:
    for output, node in zip(outputs, nodes, strict=False):
        if not bool(output.isfinite().all()):
            return f"model output at time {node.time:g} is not finite: check the model there, or run it in float32"
    return f"sample after time {nodes[0].time:g} is not finite, its model outputs are: run in float32"
