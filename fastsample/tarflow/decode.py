"""From noise to images, block by block: sequential, Jacobi or Gauss-Seidel-Jacobi."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.fixed_point.blockwise import solve_blocks, substitute
from fastsample.fixed_point.iterations import ParallelReport
from fastsample.fixed_point.updates import Jacobi
from fastsample.tarflow.block import Flow
from fastsample.tarflow.plans import BlockPlan, Plan
from fastsample.tarflow.system import BlockSystem, Guidance

METHODS = ("sequential", "jacobi", "gs-jacobi")
DEFAULT_TOLERANCE = 1e-4
DEFAULT_CHUNKS = 8
OnBlock = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class BlockReport:
    """What decoding one block took: its sweeps, tokens evaluated, residuals, and `seconds`.

    `report.substituted` are the tokens from which a chunk was redone one by one, since its iterates overflowed.
    """

    block: int
    plan: BlockPlan
    report: ParallelReport
    seconds: float


@dataclass(frozen=True)
class DecodeReport:
    """What decoding took, a :class:`BlockReport` for each block in the order they were decoded."""

    blocks: tuple[BlockReport, ...]

    @property
    def sweeps(self) -> int:
        """Passes of a block's network, one after the other."""
        return sum(block.report.sweeps for block in self.blocks)

    @property
    def evaluations(self) -> int:
        """Tokens evaluated, summed over the batch."""
        return sum(block.report.evaluations for block in self.blocks)

    @property
    def substituted(self) -> dict[int, list[int]]:
        """Blocks with chunks that overflowed and were redone one token after the other: their first tokens."""
        found = {block.block: block.report.substituted for block in self.blocks}
        return {block: tokens for block, tokens in found.items() if tokens}


@torch.no_grad()
def decode(
    model: Flow,
    z: Tensor,
    labels: Tensor | None,
    plan: Plan | None,
    guidance: Guidance,
    on_block: OnBlock | None = None,
) -> tuple[Tensor, DecodeReport]:
    """Tokens [B, T, C] of noise `z`, by `plan`, or one after the other where there is none."""
    x = z * model.var.sqrt()
    reports = []
    for index in reversed(range(len(model.blocks))):
        own = plan.blocks[index] if plan else BlockPlan(chunks=z.shape[1])
        began = time.perf_counter()
        x, report = decode_block(model, index, x, labels, own, guidance)
        reports.append(BlockReport(index, own, report, time.perf_counter() - began))
        if on_block is not None:
            on_block(index, x)
    return x, DecodeReport(tuple(reports))


@torch.no_grad()
def decode_block(
    model: Flow, index: int, z: Tensor, labels: Tensor | None, plan: BlockPlan, guidance: Guidance
) -> tuple[Tensor, ParallelReport]:
    """Tokens whose forward pass through block `index` gives `z` [B, T, C]."""
    if plan.chunks == z.shape[1]:
        states, report = substitute(BlockSystem(model, index, z, labels, guidance))
    else:
        system, ends = BlockSystem(model, index, z, labels, guidance, plan.start), plan.ends(z.shape[1])
        states, report = solve_blocks(system, Jacobi(), ends, tolerance=plan.tolerance, max_sweeps=plan.max_sweeps)
        if plan.start == "affine":  # its pass, of one image
            report.sweeps, report.evaluations = report.sweeps + 1, report.evaluations + system.length
    return model.blocks[index].ordered(states.transpose(0, 1)), report


def plan_of(method: str, plan: Plan | BlockPlan | None, blocks: int, tokens: int) -> Plan | None:
    """A plan for every block, None for sequential decoding. Raises ValueError where method and plan do not agree."""
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: use one of {', '.join(METHODS)}")
    if method == "sequential":
        if plan is not None:
            raise ValueError("method = 'sequential' has no plan: leave it out, or use 'gs-jacobi'")
        return None
    if plan is None:
        chunks = 1 if method == "jacobi" else min(DEFAULT_CHUNKS, tokens)
        plan = BlockPlan(chunks=chunks, tolerance=DEFAULT_TOLERANCE)
    full = Plan((plan,) * blocks) if isinstance(plan, BlockPlan) else plan
    if method == "jacobi" and any(block.chunks > 1 for block in full.blocks):
        raise ValueError("method = 'jacobi' solves a block at once: give a plan of 1 chunk, or use 'gs-jacobi'")
    full.check(blocks, tokens)
    return full
