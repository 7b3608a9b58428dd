"""DDIM, the first-order member of every family (Song et al. 2020, arXiv:2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.registry import solver
from fastsample.tables.row import Row, ddim_weights


@solver("ddim", order=1, space="data", references=("arXiv:2010.02502",))
@solver("euler", order=1, space="data", references=("arXiv:2206.00364",), summary="Euler in sigma: the same as ddim")
def ddim(nodes: Sequence[Node], target: Node, *, order: int = 1) -> Row:
    """First order, one model call a step, no history. Euler's method in sigma / alpha; on flow models, Euler."""
    return Row(nodes[-1], target, ddim_weights(nodes[-1], target))
