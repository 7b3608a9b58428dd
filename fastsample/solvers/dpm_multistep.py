"""DPM-Solver and DPM-Solver++ in multistep form, orders 2 and 3 (Lu et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.exponential import FAMILIES, SOLVER_TYPES, ExponentialStep
from fastsample.solvers.registry import check_choice, log_step, solver
from fastsample.tables.prediction import Space
from fastsample.tables.row import Row, Weights, first_order_weights

VARIANTS = ("released", "exact")


def two_step(step: ExponentialStep, r0: float, solver_type: str) -> tuple[float, float]:
    """k0, k1 of 2M; r0 = h_0 / h. "midpoint" and the Taylor form, "heun" (arXiv:2211.01095, alg. 2)."""
    k1 = -step.constant / (2 * r0) if solver_type == "midpoint" else -step.slope / r0
    return step.constant - k1, k1


def three_step(step: ExponentialStep, r0: float, r1: float, variant: str) -> tuple[float, float, float]:
    """k0, k1, k2 of 3M; the released code halves the second difference's weight, "exact" does not."""
    c1 = step.slope
    c2 = step.curvature * (2 if variant == "exact" else 1)
    first = (c1 * (1 + r0 / (r0 + r1)) + c2 / (r0 + r1)) / r0
    second = -(c1 * r0 + c2) / ((r0 + r1) * r1)
    return step.constant + first, second - first, -second


def multistep_weights(
    step: ExponentialStep, history: Sequence[Node], solver_type: str, variant: str
) -> tuple[float, ...]:
    """The k of order `len(history)`; `history` are the nodes evaluated, oldest first, the step's source last."""
    if len(history) == 1:
        return (step.constant,)
    r0 = log_step(history[-2], history[-1]) / step.h
    if len(history) == 2:
        return two_step(step, r0, solver_type)
    return three_step(step, r0, log_step(history[-3], history[-2]) / step.h, variant)


def multistep(
    nodes: Sequence[Node], target: Node, space: Space, order: int, solver_type: str, variant: str = "released"
) -> Weights:
    """The multistep update of `order` from the newest node, one model call a step. `variant` is of order 3 alone."""
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    check_choice("variant", variant, VARIANTS)
    source = nodes[-1]
    if order == 1:
        return first_order_weights(source, target)
    step = ExponentialStep(nodes[-1], target, space)
    return Weights(step.sample, history=multistep_weights(step, nodes[-order:], solver_type, variant))


def _register(space: Space, order: int) -> None:
    name, title, reference = FAMILIES[space]

    register = solver(
        f"{name}-{order}m",
        order=order,
        space=space,
        references=(reference,),
        summary=f"{title} multistep, order {order}: one model call a step",
        claims=lambda order: min(order, 2),  # as released, 3M is of order 2
    )

    def rule(nodes: Sequence[Node], target: Node, *, order: int = order, solver_type: str = "midpoint") -> Row:
        return Row(nodes[-1], target, multistep(nodes, target, space, order, solver_type), space)

    def rule_of_three(
        nodes: Sequence[Node],
        target: Node,
        *,
        order: int = 3,
        solver_type: str = "midpoint",
        variant: str = "released",
    ) -> Row:
        return Row(nodes[-1], target, multistep(nodes, target, space, order, solver_type, variant), space)

    register(rule_of_three if order == 3 else rule)


for _space in FAMILIES:
    for _order in (2, 3):
        _register(_space, _order)
