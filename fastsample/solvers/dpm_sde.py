"""SDE-DPM-Solver and SDE-DPM-Solver++, orders 1 and 2 (Lu et al. 2022, arXiv:2211.01095, app. on SDE solvers)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.exponential import FAMILIES, SOLVER_TYPES
from fastsample.solvers.registry import check_choice, log_step, solver
from fastsample.tables.phi import phi
from fastsample.tables.prediction import Space
from fastsample.tables.row import Row, Weights, ddim_weights


def data_sde(nodes: Sequence[Node], target: Node, order: int, solver_type: str) -> Row:
    """SDE-DPM-Solver++: keeps the marginal exactly, sigma = 0 and zero SNR included."""
    source, h = nodes[-1], log_step(nodes[-1], target)
    constant = -target.alpha * math.expm1(-2 * h)
    history: tuple[float, ...] = (constant,)
    if order == 2:
        slope = constant / 2 if solver_type == "midpoint" else target.alpha * 2 * h * phi(2, -2 * h)
        k1 = -slope * h / log_step(nodes[-2], source)
        history = (constant - k1, k1)
    sample = target.sigma / source.sigma * math.exp(-h)
    noise = target.sigma * math.sqrt(-math.expm1(-2 * h))
    return Row(source, target, Weights(sample, history=history, noise=noise), "data")


def noise_sde(nodes: Sequence[Node], target: Node, order: int, solver_type: str) -> Row:
    """SDE-DPM-Solver: keeps the mean of the marginal, its variance to first order in h."""
    source, h = nodes[-1], log_step(nodes[-1], target)
    if target.sigma == 0:
        return Row(source, target, ddim_weights(source, target), "noise")
    if source.alpha == 0:  # nothing of the sample is signal: draw the target's marginal around the data prediction
        return Row(source, target, Weights(data=target.alpha, noise=target.sigma), "noise")
    constant = -2 * target.sigma * math.expm1(h)
    history: tuple[float, ...] = (constant,)
    if order == 2:
        slope = constant / 2 if solver_type == "midpoint" else -2 * target.sigma * h * phi(2, h)
        k1 = -slope * h / log_step(nodes[-2], source)
        history = (constant - k1, k1)
    noise = target.sigma * math.sqrt(math.expm1(2 * h))
    sample = target.alpha / source.alpha
    return Row(source, target, Weights(sample, history=history, noise=noise), "noise", exact_variance=False)


def _register(space: Space, order: int, suffix: str) -> None:
    name, title, _ = FAMILIES[space]
    update = data_sde if space == "data" else noise_sde

    @solver(
        f"{name}-{suffix}-sde",
        order=order,
        space=space,
        references=("arXiv:2211.01095",),
        summary=f"SDE-{title}, order {order}: stochastic, one model call a step",
        claims=lambda order: 1,  # of the strong solution; the noise itself is not refined
    )
    def rule(nodes: Sequence[Node], target: Node, *, order: int = order, solver_type: str = "midpoint") -> Row:
        check_choice("solver_type", solver_type, SOLVER_TYPES)
        return update(nodes, target, order, solver_type)


for _space in FAMILIES:
    _register(_space, 1, "1")
    _register(_space, 2, "2m")
