"""DEIS: exact integrals of polynomials through past noise predictions (Zhang & Chen 2022, arXiv:2204.13902)."""

from __future__ import annotations

from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.exponential import ExponentialStep
from fastsample.solvers.registry import solver
from fastsample.tables.row import Row, Weights, first_order_weights


@solver(
    "deis",
    order=3,
    orders=(1, 2, 3, 4),
    space="noise",
    references=("arXiv:2204.13902",),
    claims=lambda order: min(order, 2),  # its first step is of order 1
)
def deis(nodes: Sequence[Node], target: Node, *, order: int = 3) -> Row:
    """DEIS in log(sigma / alpha): exponential Adams on noise predictions, orders 1-4, one model call a step."""
    source = nodes[-1]
    history = [node for node in nodes[-order:] if node.has_signal]
    if order == 1 or not history:
        return Row(source, target, first_order_weights(source, target), "noise")
    step = ExponentialStep(source, target, "noise")
    return Row(source, target, Weights(step.sample, history=step.adams(history)), "noise")
