"""SDE-DPM-Solver and SDE-DPM-Solver++, orders 1 to 3 (Lu et al. 2022, arXiv:2211.01095, app. on SDE solvers)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.dpm_multistep import VARIANTS, multistep_weights
from fastsample.solvers.exponential import FAMILIES, SOLVER_TYPES, ExponentialStep
from fastsample.solvers.registry import check_choice, check_eta, solver
from fastsample.tables.prediction import Space
from fastsample.tables.row import Row, Weights, ddim_weights

NOISE_TYPES = ("stable", *SOLVER_TYPES)


def sde_step(
    nodes: Sequence[Node], target: Node, space: Space, order: int, solver_type: str, variant: str, eta: float
) -> Row:
    """The multistep update of the SDE with `eta` times the forward process' noise.

    The data form keeps the marginal exactly, sigma = 0 and zero SNR included; the noise form keeps its mean, its
    variance to first order in h. On long steps it takes out more noise than there is and adds as much again; where it
    would, "stable" lowers the order, at last to the first-order step of the data form. Elsewhere that is "midpoint",
    which at any length is, like "heun", as published and as in diffusers.
    """
    check_choice("solver_type", solver_type, SOLVER_TYPES if space == "data" else NOISE_TYPES)
    check_choice("variant", variant, VARIANTS)
    check_eta(eta)
    source = nodes[-1]
    if space == "noise" and target.sigma == 0:
        return Row(source, target, ddim_weights(source, target), space)
    if space == "noise" and not source.has_signal:
        # nothing of the sample is signal: draw the target's marginal around the data prediction
        return Row(source, target, Weights(data=target.alpha, noise=target.sigma), space)
    step = ExponentialStep(source, target, space, eta)
    if solver_type == "stable":
        kept = [p for p in range(order, 0, -1) if _keeps_sign(step, nodes[-p:], variant)]
        if not kept:
            data = ExponentialStep(source, target, "data", eta)
            return Row(source, target, Weights(data.sample, data=data.constant, noise=data.noise), space)
        order, solver_type = kept[0], "midpoint"
    history = multistep_weights(step, nodes[-order:], solver_type, variant)
    weights = Weights(step.sample, history=history, noise=step.noise)
    return Row(source, target, weights, space, exact_variance=space == "data" or eta == 0)


def _keeps_sign(step: ExponentialStep, history: Sequence[Node], variant: str) -> bool:
    """Whether the noise that the newest prediction finds in the sample is not taken out twice over."""
    newest = multistep_weights(step, history, "midpoint", variant)[0]
    return step.sample * step.source.sigma + newest >= 0


def _register(space: Space, order: int, suffix: str) -> None:
    name, title, _ = FAMILIES[space]
    kinds = NOISE_TYPES if space == "noise" else SOLVER_TYPES

    register = solver(
        f"{name}-{suffix}-sde",
        order=order,
        space=space,
        references=("arXiv:2211.01095",),
        summary=f"SDE-{title}, order {order}: stochastic, one model call a step",
        claims=lambda order: 1,  # of the strong solution; the noise itself is not refined
        longest=(math.inf, math.inf, 0.5),  # the SDE goes twice as far along the prediction as the ODE
    )

    def rule_of_one(nodes: Sequence[Node], target: Node, *, order: int = 1, eta: float = 1.0) -> Row:
        return sde_step(nodes, target, space, order, kinds[0], "released", eta)

    def rule(
        nodes: Sequence[Node], target: Node, *, order: int = order, solver_type: str = kinds[0], eta: float = 1.0
    ) -> Row:
        return sde_step(nodes, target, space, order, solver_type, "released", eta)

    def rule_of_three(
        nodes: Sequence[Node],
        target: Node,
        *,
        order: int = 3,
        solver_type: str = kinds[0],
        variant: str = "released",
        eta: float = 1.0,
    ) -> Row:
        return sde_step(nodes, target, space, order, solver_type, variant, eta)

    # of one prediction there is one form, but that of noise is "stable" or not
    register(rule_of_three if order == 3 else rule_of_one if order == 1 and space == "data" else rule)


for _space in FAMILIES:
    _register(_space, 1, "1")
    _register(_space, 2, "2m")
_register("data", 3, "3m")
