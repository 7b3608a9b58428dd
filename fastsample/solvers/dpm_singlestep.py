"""DPM-Solver and DPM-Solver++ in single-step form, orders 2 and 3 (Lu et al. 2022).

A step of order p makes p evaluations: at its start and at p - 1 stages. The rule is called once for each,
with `order` the evaluation's position in its step; the sample at the start is kept in the state "base".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.exponential import FAMILIES, SOLVER_TYPES, ExponentialStep
from fastsample.solvers.registry import check_choice, log_step, solver
from fastsample.tables.prediction import Space
from fastsample.tables.row import Row, Weights, ddim_weights


def singlestep(nodes: Sequence[Node], target: Node, space: Space, position: int, solver_type: str, block: int) -> Row:
    """The update after evaluation `position` (1, 2, 3) of a step of `block` evaluations.

    The inner stage of order 3 always takes the Taylor form, as in the authors' code (arXiv:2206.00927, alg. 2).
    """
    check_choice("solver_type", solver_type, SOLVER_TYPES)
    source, base = nodes[-1], nodes[-position]
    if position == 1:
        keep = {"base": Weights(sample=1.0)} if block > 1 else {}
        return Row(source, target, ddim_weights(source, target), space, states=keep)
    step = ExponentialStep(base, target, space)
    midpoint = solver_type == "midpoint" and position == block
    ratios = [log_step(base, node) / step.h for node in nodes[len(nodes) - position + 1 :]]
    if position == 2 or midpoint:
        # The difference quotient over the newest stage alone.
        k = step.constant / (2 * ratios[-1]) if position == 2 and midpoint else step.slope / ratios[-1]
        history = (k, *[0.0] * (position - 2), step.constant - k)
    else:
        r1, r2 = ratios
        k1 = (step.slope * r2 - 2 * step.curvature) / ((r2 - r1) * r1)
        k2 = (2 * step.curvature - step.slope * r1) / ((r2 - r1) * r2)
        history = (k2, k1, step.constant - k1 - k2)
    return Row(source, target, Weights(history=history, states={"base": step.sample}), space, base=base)


def _register(space: Space, order: int) -> None:
    name, title, reference = FAMILIES[space]

    @solver(
        f"{name}-{order}s",
        order=order,
        space=space,
        references=(reference,),
        summary=f"{title} single-step, order {order}: {order} model calls a step",
        stages=tuple(index / order for index in range(1, order)),
        longest=(math.inf, 1.9, 3.0) if space == "noise" else (math.inf,),  # noise forms grow by e^h
    )
    def rule(
        nodes: Sequence[Node], target: Node, *, order: int, block: int = order, solver_type: str = "midpoint"
    ) -> Row:
        return singlestep(nodes, target, space, order, solver_type, block)


for _space in FAMILIES:
    for _order in (2, 3):
        _register(_space, _order)
