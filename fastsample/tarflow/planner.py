"""A plan by measurement: for each block the start, chunks, tolerance and sweep limit that are fastest."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from fastsample.fixed_point.iterations import ParallelReport
from fastsample.sampling.ledger import clock
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tarflow.decode import decode, decode_block
from fastsample.tarflow.model import TarFlowModel
from fastsample.tarflow.plans import BlockPlan, Plan
from fastsample.tarflow.system import STARTS, Guidance

MARGIN = 1 / 3  # of the target, aimed at here: of 384 other images the worst were twice as far off
TOLERANCES = [10 ** (-step / 4) for step in range(4, 29)]  # 1e-1 .. 1e-7


def plan(
    model: TarFlowModel,
    target_residual: float = 1e-4,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    batch: int = 16,
    guidance: float = 0.0,
    annealed_guidance: bool = True,
    attention_temperature: float = 1.0,
    generator: Generators = None,
    repeats: int = 3,
    on_block: Callable[[int], None] | None = None,
) -> Plan:
    """The plan that is measured to decode fastest with images within `target_residual` of the sequential ones.

    The residual is the largest relative RMS difference of an image. Measured are `images` [B, ..] in [-1, 1] with
    their `labels`, else `batch` samples of the model, of all classes in turn where there are no labels; with the
    guidance that will be used. The start is the one of smallest IGM; the chunks are doubled while that is faster; the
    tolerance keeps the block's share of the residual in the fewest sweeps; a block that is slower so than one token
    after the other stays sequential. Speed depends on device and batch: plan where, and with the batch size, you
    sample.

    Raises ValueError for a target that is not above 0, wrong shapes, labels or guidance, before any pass.
    """
    if not target_residual > 0:
        raise ValueError(f"target_residual = {target_residual}: give a number above 0, 1e-4 for example")
    for name, value in (("batch", batch), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} = {value}: give 1 or more")
    guide = model.guidance(guidance, annealed_guidance, attention_temperature)
    classes = model.config.num_classes
    if images is not None:
        batch = len(images)
    elif labels is None and classes:
        labels = torch.arange(batch, device=model.device) % classes
    model.check_labels(labels, batch)
    if images is not None:
        z = model.encode(images, labels)[0].detach()
    else:
        z = draw_noise(model.var.new_empty(batch, *model.var.shape), generator).to(model.dtype)
    trace: dict[int, Tensor] = {}
    exact, _ = decode(model, z, labels, None, guide, trace.__setitem__)
    igm, crm = model.metrics(model.images(exact) if images is None else images, labels)
    starts = [min(STARTS, key=lambda start: igm[start][index]) for index in range(len(model.blocks))]
    meter = _Meter(model, labels, guide, z, trace, repeats)
    allowed = MARGIN * target_residual  # of each block; most are damped by those after them, else it is lowered
    while True:
        found: dict[int, _Choice] = {}
        for index in reversed(range(len(model.blocks))):
            found[index] = meter.best(index, starts[index], allowed)
            if on_block is not None:
                on_block(index)
        blocks = tuple(found[index].plan for index in range(len(model.blocks)))
        x, _ = decode(model, z, labels, Plan(blocks), guide)
        residual = relative_residual(x, exact)
        if residual <= MARGIN * target_residual:
            break
        allowed *= max(0.3, min(0.8, MARGIN * target_residual / residual))
    measured: dict[str, Any] = {
        "target_residual": target_residual,
        "residual": residual,
        "batch": batch,
        "data": images is not None,
        "guidance": guidance,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "igm": igm,
        "crm": crm,
        "seconds": [found[index].seconds for index in range(len(blocks))],
        "sequential_seconds": [meter.sequential(index).seconds for index in range(len(blocks))],
        "sweeps": [found[index].sweeps for index in range(len(blocks))],
    }
    return Plan(blocks, measured)


def relative_residual(x: Tensor, exact: Tensor) -> float:
    """The largest `||x - exact|| / ||exact||` of a batch item; inf where one is not finite."""
    x, exact = (images.flatten(1).cpu().double() for images in (x, exact))  # not every device has float64
    worst = float((torch.linalg.vector_norm(x - exact, dim=1) / torch.linalg.vector_norm(exact, dim=1)).max())
    return worst if math.isfinite(worst) else math.inf


@dataclass(frozen=True)
class _Choice:
    """A block's plan with what it cost."""

    plan: BlockPlan
    seconds: float
    sweeps: int


@dataclass(frozen=True)
class _Trial:
    """The residual of a block's tokens, the sweeps in all, and those of the chunk that took the most."""

    residual: float
    sweeps: int
    most: int


class _Meter:
    """Measures plans of single blocks, each plan once, on what goes into the block in sequential decoding."""

    def __init__(
        self,
        model: TarFlowModel,
        labels: Tensor | None,
        guidance: Guidance,
        z: Tensor,
        trace: dict[int, Tensor],
        repeats: int,
    ) -> None:
        self._model, self._labels, self._guidance, self._repeats = model, labels, guidance, repeats
        self._exact = trace
        self._inputs = {index: trace.get(index + 1, z * model.var.sqrt()) for index in trace}
        self._tried: dict[tuple[int, BlockPlan], _Trial] = {}
        self._timings: dict[tuple[int, BlockPlan], _Choice] = {}

    def sequential(self, index: int) -> _Choice:
        """What the block costs one token after the other."""
        return self._timed(index, BlockPlan(chunks=len(self._model.var)))

    def best(self, index: int, start: str, allowed: float) -> _Choice:
        """The fastest plan whose tokens are within `allowed` of the sequential ones."""
        best, chunks, tokens = self.sequential(index), 1, len(self._model.var)
        fastest_parallel = math.inf
        while chunks < tokens:
            plan = self._within(index, BlockPlan(start, chunks), allowed)
            if plan is not None:
                choice = self._timed(index, plan)
                best = min(best, choice, key=lambda each: each.seconds)
                if choice.seconds > fastest_parallel:
                    break
                fastest_parallel = choice.seconds
            chunks *= 2
        return best

    def _within(self, index: int, plan: BlockPlan, allowed: float) -> BlockPlan | None:
        """`plan` with a tolerance that keeps to `allowed` in the fewest sweeps, and a limit somewhat above theirs.

        Of the tolerances that take as many sweeps, one nearer to the smallest: harder images then take a sweep more.
        """

        def trial(tolerance: float) -> _Trial:
            return self._try(index, replace(plan, tolerance=tolerance))

        first = bisect_left(TOLERANCES, True, key=lambda tolerance: trial(tolerance).residual <= allowed)
        if first == len(TOLERANCES):
            return None
        found = trial(TOLERANCES[first])
        same = list(takewhile(lambda tolerance: trial(tolerance).sweeps == found.sweeps, TOLERANCES[first:]))
        limit = found.most + max(2, found.most // 4)
        return replace(plan, tolerance=same[-1 - (len(same) - 1) // 4], max_sweeps=limit)

    def _try(self, index: int, plan: BlockPlan) -> _Trial:
        if (index, plan) not in self._tried:
            x, report = self._decoded(index, plan)
            most = _most_sweeps(report, plan.ends(len(self._model.var)))
            self._tried[index, plan] = _Trial(relative_residual(x, self._exact[index]), report.sweeps, most)
        return self._tried[index, plan]

    def _timed(self, index: int, plan: BlockPlan) -> _Choice:
        if (index, plan) not in self._timings:
            seconds = []
            for _ in range(self._repeats):
                began = clock(self._model.device)
                _, report = self._decoded(index, plan)
                seconds.append(clock(self._model.device) - began)
            self._timings[index, plan] = _Choice(plan, statistics.median(seconds), report.sweeps)
        return self._timings[index, plan]

    def _decoded(self, index: int, plan: BlockPlan) -> tuple[Tensor, ParallelReport]:
        return decode_block(self._model, index, self._inputs[index], self._labels, plan, self._guidance)


def _most_sweeps(report: ParallelReport, ends: list[int]) -> int:
    """The sweeps of the chunk that took the most of them."""
    begins = [0, *(begin for begin, *_ in report.starts)][:-1]  # before each sweep
    firsts = [0, *ends[:-1]]
    return max(sum(first <= begin < end for begin in begins) for first, end in zip(firsts, ends, strict=True))
