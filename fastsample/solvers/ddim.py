"""DDIM, the first-order member of every family (Song et al. 2020, arXiv:2010.02502)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.registry import solver
from fastsample.tables.row import Row, Weights, ddim_weights


@solver("ddim", order=1, space="data", references=("arXiv:2010.02502",))
@solver(
    "euler",
    order=1,
    space="data",
    references=("arXiv:2206.00364",),
    summary="Euler in sigma: the same as ddim",
)
def ddim(nodes: Sequence[Node], target: Node, *, order: int = 1, eta: float = 0.0) -> Row:
    """First order, one model call a step, no history. Euler's method in sigma / alpha; on flow models, Euler.

    `eta` in [0, 1] interpolates to ancestral sampling (DDPM) (arXiv:2010.02502, eq. 16).
    """
    source = nodes[-1]
    if not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta!r}: give a number from 0 (deterministic) to 1 (ancestral)")
    if eta == 0:
        return Row(source, target, ddim_weights(source, target))
    noise = eta * target.sigma * math.sqrt(1 - (target.sbar / source.sbar) ** 2)
    ratio = math.sqrt(target.sigma**2 - noise**2) / source.sigma
    return Row(source, target, Weights(ratio, data=target.alpha - source.alpha * ratio, noise=noise))
