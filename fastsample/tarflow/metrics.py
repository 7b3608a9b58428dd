"""How well a block can be decoded in parallel: IGM and CRM (Liu and Qin 2025, arXiv:2505.12849, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastsample.tarflow.block import FlowBlock
from fastsample.tarflow.system import STARTS

if TYPE_CHECKING:
    from fastsample.tarflow.model import TarFlowModel


@torch.no_grad()
def convergence_metrics(
    model: TarFlowModel, tokens: Tensor, labels: Tensor | None, norm: float = 2
) -> tuple[dict[str, list[float]], list[float]]:
    """Initial guessing metric by start and convergence ranking metric, each a number for every block, in float64.

    With x, z [B, T, C] a block's tokens before and after it, on real images or samples:
    IGM(start) = || mean over the batch of (one Jacobi sweep from the start, minus x) ||: the smaller start is nearer.
    CRM = || mean of exp(-a) x || ||W_a|| + ||W_b||, with W_a, W_b the halves of the output layer that give a and b:
    blocks that rank high need more sweeps. Norms are of matrices, of order `norm` (2: spectral).
    """
    guessing: dict[str, list[float]] = {start: [] for start in STARTS}
    ranking = []
    for block in model.blocks:
        z = block(tokens, labels)[0]
        x, of_z = block.ordered(tokens), block.ordered(z)
        condition = block.condition(labels)
        first, zeros = of_z[:, :1], torch.zeros_like(of_z[:, 1:])
        for start, guess in (("z", of_z), ("zeros", torch.cat([first, zeros], 1))):
            guessing[start].append(_norm((_sweep(block, guess, of_z, condition) - x).mean(0), norm))
        a = block.outputs(x[:, :-1], condition).chunk(2, -1)[0]
        scaled = torch.cat([x[:, :1], (-a).exp() * x[:, 1:]], 1).mean(0)
        of_a, of_b = block.proj_out.weight.chunk(2)
        ranking.append(_norm(scaled, norm) * _norm(of_a, norm) + _norm(of_b, norm))
        tokens = z
    return guessing, ranking


def _sweep(block: FlowBlock, guess: Tensor, z: Tensor, condition: Tensor | None) -> Tensor:
    a, b = block.outputs(guess[:, :-1], condition).chunk(2, -1)
    return torch.cat([z[:, :1], z[:, 1:] * a.exp() + b], 1)


def _norm(matrix: Tensor, order: float) -> float:
    return float(torch.linalg.matrix_norm(matrix.double(), ord=order))
