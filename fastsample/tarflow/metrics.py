"""How well a block can be decoded in parallel: IGM and CRM (Liu and Qin 2025, arXiv:2505.12849, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample.tarflow.block import Flow
from fastsample.tarflow.system import STARTS, BlockSystem


@torch.no_grad()
def convergence_metrics(
    model: Flow, tokens: Tensor, labels: Tensor | None, norm: float = 2
) -> tuple[dict[str, list[float]], list[float]]:
    """Initial guessing metric by start and convergence ranking metric, each a number for every block, in float64.

    With x, z [B, T, C] a block's tokens before and after it, on real images or samples, and a start of STARTS:
    IGM(start) = || mean over the batch of (one Jacobi sweep from the start, minus x) ||: the smaller start is nearer.
    CRM = || mean of exp(-a) x || ||W_a|| + ||W_b||, with W_a, W_b the halves of the output layer that give a and b:
    blocks that rank high need more sweeps. Norms are of matrices, of order `norm` (2: spectral).
    """
    guessing: dict[str, list[float]] = {start: [] for start in STARTS}
    ranking = []
    for index, block in enumerate(model.blocks):
        z = block(tokens, labels)[0]
        x, condition = block.ordered(tokens), block.condition(labels)
        for start in STARTS:
            guessing[start].append(_norm((_sweep(model, index, z, labels, start) - x[:, 1:]).mean(0), norm))
        a = block.outputs(x[:, :-1], condition).chunk(2, -1)[0]
        scaled = torch.cat([x[:, :1], (-a).exp() * x[:, 1:]], 1).mean(0)
        of_a, of_b = block.proj_out.weight.chunk(2)
        ranking.append(_norm(scaled, norm) * _norm(of_a, norm) + _norm(of_b, norm))
        tokens = z
    return guessing, ranking


def _sweep(model: Flow, index: int, z: Tensor, labels: Tensor | None, start: str) -> Tensor:
    """The tokens after the first one, [B, T - 1, C] in the block's order, by one Jacobi sweep."""
    system = BlockSystem(model, index, z, labels, start=start)
    rows, states = torch.arange(system.length)[:, None].expand(-1, len(z)), system.initial()[:-1]
    return system.advance(rows, states, system.evaluate(rows, states)).transpose(0, 1)


def _norm(matrix: Tensor, order: float) -> float:
    return float(torch.linalg.matrix_norm(matrix.cpu().double(), ord=order))
