"""Exponential Runge-Kutta methods on data predictions, and the SDEs that are solved by them: RES, SEEDS, exp. Heun.

With lam_i = lam_s + c_i h, H = (1 + eta) h and phi_k short for phi_k(-H), a stage is

    x_i = (sigma_i / sigma_s) e^(-eta c_i h) x + alpha_i H sum_j A_ij D_j + noise,  A_i1 = c_i phi_1(-c_i H) - rest

and so is the step's end, with weights b and b_1 = phi_1 - rest (Hochbruck and Ostermann 2005, doi:10.1137/040611434;
Refined Exponential Solver, arXiv:2308.02157; SEEDS, arXiv:2305.14267). Every stage goes on from the one before, whose
noise it carries with it: so neither the sample at the start nor a path of the noise is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.ancestral import ancestral_split
from fastsample.solvers.exponential import SOLVER_TYPES, ExponentialStep
from fastsample.solvers.registry import check_choice, check_eta, log_step, solver
from fastsample.tables.row import Row, Weights, ddim_weights

Integral = Callable[[Sequence[Node], Node, float], list[float]]
"""`(evaluated, to, eta) -> weights`: of the data predictions at `evaluated`, a step's start and its stages."""


def constant(evaluated: Sequence[Node], to: Node, eta: float) -> list[float]:
    """Of order 1: the exact integral of the first prediction."""
    return [ExponentialStep(evaluated[0], to, "data", eta).constant]


def second_order(solver_type: str) -> Integral:
    """By one more prediction: b_2 = phi_2 / c_2 ("heun"), or phi_1 / (2 c_2) ("midpoint")."""

    def integral(evaluated: Sequence[Node], to: Node, eta: float) -> list[float]:
        base, stage = evaluated
        step = ExponentialStep(base, to, "data", eta)
        part = log_step(base, stage) / step.h
        newest = step.slope / part if solver_type == "heun" else step.constant / (2 * part)
        return [step.constant - newest, newest]

    return integral


def seeds_third(evaluated: Sequence[Node], to: Node, eta: float) -> list[float]:
    """b_2 = 0, b_3 = phi_2 / c_3, which is of third order at c_3 = 2/3."""
    first, second = second_order("heun")([evaluated[0], evaluated[2]], to, eta)
    return [first, 0.0, second]


def res_inner(c2: float, c3: float) -> Integral:
    """A_32 = g c_2 phi_2(-c_2 H) + (c_3^2 / c_2) phi_2(-c_3 H)."""

    def integral(evaluated: Sequence[Node], to: Node, eta: float) -> list[float]:
        base, stage = evaluated
        step, half = ExponentialStep(base, to, "data", eta), ExponentialStep(base, stage, "data", eta)
        newest = res_ratio(c2, c3) * to.alpha / stage.alpha * half.slope + c3 / c2 * step.slope
        return [step.constant - newest, newest]

    return integral


def res_ratio(c2: float, c3: float) -> float:
    """g = b_2 / b_3, by which the weights of a slope and of a curvature come out right together."""
    return (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))


def res_third(evaluated: Sequence[Node], to: Node, eta: float) -> list[float]:
    """b_3 = phi_2 / (g c_2 + c_3), b_2 = g b_3."""
    base, *others = evaluated
    step = ExponentialStep(base, to, "data", eta)
    c2, c3 = (log_step(base, node) / step.h for node in others)
    ratio = res_ratio(c2, c3)
    third = step.slope / (ratio * c2 + c3)
    return [step.constant - (1 + ratio) * third, ratio * third, third]


def stage(
    nodes: Sequence[Node], target: Node, position: int, eta: float, integrals: Sequence[Integral], block: int
) -> Row:
    """The row after evaluation `position` of a step of `block`, whose i-th one is followed by `integrals[i - 1]`."""
    check_eta(eta)
    source, evaluated = nodes[-1], nodes[-position:]
    if block == 1:
        integrals = [constant]
    reached = ExponentialStep(source, target, "data", eta) if target.lam != source.lam else None
    carried = reached.sample if reached else 1.0  # a stage may lie on the step's end
    weights = _integral(integrals[position - 1], evaluated, target, eta)
    if position > 1:
        before = _integral(integrals[position - 2], evaluated[:-1], source, eta)
        weights = [new - carried * old for new, old in zip(weights, [*before, 0.0], strict=True)]
    noise = reached.noise if reached else 0.0
    return Row(source, target, Weights(carried, history=tuple(reversed(weights)), noise=noise))


def _integral(integral: Integral, evaluated: Sequence[Node], to: Node, eta: float) -> list[float]:
    """The weights; in their limit from zero SNR all is the newest prediction's."""
    if evaluated[0].has_signal:
        return integral(evaluated, to, eta)
    return [*[0.0] * (len(evaluated) - 1), constant(evaluated, to, eta)[0]]


def _register_second(name: str, part: float, kind: str, noisy: float, summary: str, reference: str) -> None:
    @solver(
        name,
        order=2,
        space="data",
        references=(reference,),
        summary=summary,
        stages=(part,),
        whole_steps=True,
        claims=(lambda order: 1) if noisy else None,
    )
    def rule(
        nodes: Sequence[Node],
        target: Node,
        *,
        order: int = 2,
        block: int = 2,
        solver_type: str = kind,
        eta: float = noisy,
    ) -> Row:
        check_choice("solver_type", solver_type, SOLVER_TYPES)
        return stage(nodes, target, order, eta, [constant, second_order(solver_type)], block)


_register_second(
    "res-2s",
    0.5,
    "heun",
    0.0,
    "Refined exponential solver, order 2: two model calls a step, the second halfway",
    "arXiv:2308.02157",
)
_register_second(
    "seeds-2",
    0.5,
    "midpoint",
    1.0,
    "SEEDS-2: the reverse SDE by an exponential Runge-Kutta step, two model calls a step",
    "arXiv:2305.14267",
)
_register_second(
    "exp-heun",
    1.0,
    "heun",
    0.0,
    "Exponential Heun: two model calls a step, the second at its end; `eta` 1 is its SDE",
    "doi:10.1137/040611434",
)


@solver("res-3s", order=3, space="data", references=("arXiv:2308.02157",), stages=(0.5, 1.0), whole_steps=True)
def res_3s(nodes: Sequence[Node], target: Node, *, order: int = 3, block: int = 3, eta: float = 0.0) -> Row:
    """Refined exponential solver, order 3: three model calls a step, at its start, middle and end."""
    return stage(nodes, target, order, eta, [constant, res_inner(0.5, 1.0), res_third], block)


@solver(
    "seeds-3",
    order=3,
    space="data",
    references=("arXiv:2305.14267",),
    stages=(1 / 3, 2 / 3),
    whole_steps=True,
    claims=lambda order: 1,
)
def seeds_3(nodes: Sequence[Node], target: Node, *, order: int = 3, block: int = 3, eta: float = 1.0) -> Row:
    """SEEDS-3: the reverse SDE by an exponential Runge-Kutta step, three model calls a step; `eta` 0 is dpmpp-3s."""
    return stage(nodes, target, order, eta, [constant, second_order("heun"), seeds_third], block)


@solver(
    "res-3m",
    order=3,
    space="data",
    references=("arXiv:2308.02157",),
    claims=lambda order: min(order, 2),  # its first step is of order 1
    longest=(math.inf, 1.8, 1.0),
)
def res_3m(nodes: Sequence[Node], target: Node, *, order: int = 3) -> Row:
    """Refined exponential solver, multistep, order 3: older predictions as stages, one model call a step."""
    source = nodes[-1]
    known = [source, *[node for node in nodes[-2 : -order - 1 : -1] if node.alpha > 0]]
    integral = (constant, second_order("heun"), res_third)[len(known) - 1]
    weights = integral(known, target, 0.0)
    return Row(source, target, Weights(target.sigma / source.sigma, history=tuple(weights)))


@solver(
    "res-multistep-ancestral",
    order=2,
    space="data",
    references=("arXiv:2308.02157",),
    claims=lambda order: 1,
    longest=(math.inf, 1.2),  # it goes about twice as far along the prediction as the ODE
)
def res_multistep_ancestral(
    nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 1.0, split: str = "posterior"
) -> Row:
    """res-2m in ancestral steps, one model call a step; `eta` 0 is dpmpp-2m "heun", 1 dpmpp-2m-sde "heun"."""
    source = nodes[-1]
    down, noise = ancestral_split(source, target, eta, split)
    if order == 1 or down.sigma == 0:
        return Row(source, target, ddim_weights(source, down, noise))
    step, previous = ExponentialStep(source, down, "data"), ancestral_split(nodes[-2], source, eta, split)[0]
    older = -step.slope * step.h / log_step(nodes[-2], previous)
    return Row(source, target, Weights(step.sample, history=(step.constant - older, older), noise=noise))
