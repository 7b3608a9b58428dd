"""DDIM, the first-order member of every family (Song et al. 2020, arXiv:2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.ancestral import ancestral_split
from fastsample.solvers.registry import solver
from fastsample.tables.row import Row, ddim_weights, first_order_weights


@solver("ddim", order=1, space="noise", references=("arXiv:2010.02502",))
@solver(
    "euler",
    order=1,
    space="noise",
    references=("arXiv:2206.00364",),
    summary="Euler in sigma: the same as ddim",
)
def ddim(nodes: Sequence[Node], target: Node, *, order: int = 1, eta: float = 0.0, split: str = "posterior") -> Row:
    """First order, one model call a step, no history. Euler's method in sigma / alpha; on flow models, Euler.

    `eta` in [0, 1] interpolates to ancestral sampling (DDPM, "Euler a") (arXiv:2010.02502, eq. 16), whose `split` is
    "rf" in "Euler a RF".
    """
    source = nodes[-1]
    if source.sigma == 0:
        return Row(source, target, first_order_weights(source, target), "noise")
    down, noise = ancestral_split(source, target, eta, split)
    return Row(source, target, ddim_weights(source, down, noise), "noise")
