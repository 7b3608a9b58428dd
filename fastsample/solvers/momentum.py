"""Heavy-ball momentum for stability: HB, Nesterov, GHVB (Wizadwongsa et al. 2023, arXiv:2307.11118)."""

from __future__ import annotations

from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.adams import adams_weights, remembered, sigma_row, sigma_weights, variable_adams_weights
from fastsample.solvers.dpm_multistep import multistep
from fastsample.solvers.registry import check_choice, check_unit_interval, solver
from fastsample.tables.row import Row, Weights

REFERENCES = ("arXiv:2307.11118",)
WEIGHTS = ("fixed", "variable")


def with_momentum(step: Weights, beta: float, *, started: bool, nesterov: bool = False) -> tuple[Weights, Weights]:
    """The step with a velocity in place of its direction D (its history part, normalised), and that velocity.

    `v <- (1 - beta) v + beta D`, or D itself when the velocity has not `started`; the step then uses v, or
    with `nesterov` `(1 - beta) v + beta D`.
    """
    check_unit_interval("beta", beta)
    length = step.total()
    direction = [weight / length for weight in step.history] if length else [1.0]
    if not started or not length:  # from zero SNR a step has no direction yet
        return step, Weights(history=tuple(direction))
    keep, fresh = 1.0 - beta, beta
    velocity = Weights(history=tuple([fresh * weight for weight in direction]), states={"velocity": keep})
    if nesterov:
        keep, fresh = keep**2, (1.0 - beta) * beta + beta
    slope = tuple([length * fresh * weight for weight in direction])
    return Weights(step.sample, history=slope, states={"velocity": length * keep}), velocity


def adams_with_momentum(nodes: Sequence[Node], target: Node, order: int, beta: float, nesterov: bool) -> Row:
    """Momentum on Adams-Bashforth of `order`."""
    step = sigma_weights(nodes[-1], target, adams_weights(order))
    moved, velocity = with_momentum(step, beta, started=len(nodes) > 1, nesterov=nesterov)
    return Row(nodes[-1], target, moved, "noise", states={"velocity": velocity})


@solver(
    "hb",
    order=2,
    orders=(1, 2, 3, 4),
    space="noise",
    references=REFERENCES,
    limits=False,
    claims=lambda order: 1,
)
def heavy_ball(nodes: Sequence[Node], target: Node, *, order: int = 2, beta: float = 0.8) -> Row:
    """Heavy ball on Adams-Bashforth of `order`; order of convergence 1 for beta < 1, a wider stability region."""
    return adams_with_momentum(nodes, target, order, beta, nesterov=False)


@solver(
    "nesterov",
    order=2,
    orders=(1, 2, 3, 4),
    space="noise",
    references=REFERENCES,
    limits=False,
    claims=lambda order: 1,
)
def nesterov(nodes: Sequence[Node], target: Node, *, order: int = 2, beta: float = 0.8) -> Row:
    """Nesterov momentum on Adams-Bashforth of `order`; order of convergence 1 for beta < 1."""
    return adams_with_momentum(nodes, target, order, beta, nesterov=True)


@solver("hb-dpmpp-2m", order=2, space="data", references=REFERENCES, claims=lambda order: 1)
def heavy_ball_dpmpp_2m(
    nodes: Sequence[Node],
    target: Node,
    *,
    order: int = 2,
    started: bool = False,
    beta: float = 0.8,
    solver_type: str = "midpoint",
) -> Row:
    """Heavy ball on DPM-Solver++ 2M; order of convergence 1 for beta < 1. Order-1 steps leave the velocity."""
    step = multistep(nodes, target, "data", order, solver_type)
    check_unit_interval("beta", beta)
    if order == 1:
        return Row(nodes[-1], target, step)
    moved, velocity = with_momentum(step, beta, started=started)
    return Row(nodes[-1], target, moved, states={"velocity": velocity})


@solver(
    "ghvb",
    order=4,
    orders=(1, 2, 3, 4, 5),
    space="noise",
    references=REFERENCES,
    limits=False,
    claims=lambda order: min(order, 2),
)
def ghvb(nodes: Sequence[Node], target: Node, *, order: int = 4, beta: float = 0.8, weights: str = "fixed") -> Row:
    """Generalised heavy ball: Adams-Bashforth over velocities, orders 1-5 (2 off grids uniform in sigma / alpha).

    The history holds velocities `v_n = (1 - beta) v_{n-1} + beta noise_n`, `v_0 = noise_0`. `weights` are the
    paper's "fixed" ones, for a grid uniform in sigma / alpha, or "variable", those of the actual grid.
    """
    check_unit_interval("beta", beta)
    check_choice("weights", weights, WEIGHTS)
    # the grid's own weights know no zero SNR, where s = inf: there the velocity starts later
    window = nodes[-order - remembered(beta) :]
    known = window if weights == "fixed" else [node for node in window if node.has_signal]
    if len(known) < 2:
        return sigma_row(nodes[-1], target, (1.0,))
    if weights == "fixed":
        newest, *older = adams_weights(order, beta)
    else:
        newest, *older = variable_adams_weights(known, target, order, beta)
    second = newest * (1 - beta) + (older[0] if older else 0.0)
    entry = Weights(history=(beta, 1 - beta))
    return sigma_row(nodes[-1], target, (newest * beta, second, *older[1:]), entry)
