"""SA-Solver: stochastic Adams predictor and corrector on data predictions (Xue et al. 2023, arXiv:2309.05019).

Predictor and corrector of one step share the noise and the factor of the sample, so that a correction is made of
predictions alone: it needs no copy of the sample or the noise from before the prediction. Orders fall toward the last
noisy level, so that the step onto clean data is of order 1 and the one before it too.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.solvers.exponential import ExponentialStep
from fastsample.solvers.registry import check_choice, check_eta, log_step, solver
from fastsample.tables.interpolation import interpolation_weights
from fastsample.tables.orders import NOISY, RATIO
from fastsample.tables.row import Row, Weights, ddim_weights

REFERENCES = ("arXiv:2309.05019",)
CORRECTORS = (0, 1, 2, 3, 4)
LONGEST = (math.inf, math.inf, 0.5)
WINDOW = (0.8, 0.2)
"""The parts of the model's time between which steps add noise, where their caller names no levels."""


class Stepper:
    """Makes the steps of one run: with tau^2 = eta^2 where their end is a level from `start` to `end`, else 0."""

    def __init__(self, schedule: NoiseSchedule, eta: float, start: float | None, end: float | None) -> None:
        check_eta(eta)
        low, high = schedule.first_time, schedule.noise_time
        levels = [schedule.node(low + part * (high - low)).sbar for part in WINDOW]
        self.eta = eta
        self.noisy, self.clean = (
            own if given is None else given for given, own in zip((start, end), levels, strict=True)
        )

    def step(self, source: Node, target: Node) -> ExponentialStep:
        """From `source` to `target`."""
        noisy = self.clean <= target.sbar <= self.noisy
        return ExponentialStep(source, target, "data", self.eta**2 if noisy else 0.0)


def latest(nodes: Sequence[Node], count: int) -> list[tuple[int, Node]]:
    """The newest evaluation at each of the last `count` levels with signal, and how many evaluations ago it was."""
    found: list[tuple[int, Node]] = []
    for ago, node in enumerate(reversed(nodes)):
        if len(found) == count or node.alpha == 0:
            break
        if not found or node.lam != found[-1][1].lam:
            found.append((ago, node))
    return found


def correction(step: ExponentialStep, known: Sequence[Node], predictor: int, corrector: int) -> list[float]:
    """Corrected less predicted: weights of the prediction at the step's end, then of those at `known`, newest first.

    `corrector` points with the new one, `predictor` without it.
    """
    points = [step.target, *known[: corrector - 1]]
    places = [log_step(step.source, node) / step.h for node in points]
    corrected = interpolation_weights(places, [step.moment(k) for k in range(len(places))])
    predicted = [0.0, *step.adams(known[:predictor][::-1])]
    return [new - old for new, old in itertools.zip_longest(corrected, predicted, fillvalue=0.0)]


def spread(weights: Sequence[float], seen: Sequence[tuple[int, Node]]) -> list[float]:
    """`weights` of the evaluations `seen`, as weights of the history."""
    history = [0.0] * (seen[len(weights) - 1][0] + 1)
    for weight, (ago, _) in zip(weights, seen, strict=False):
        history[ago] = weight
    return history


@solver(
    "sa-solver",
    order=3,
    orders=(1, 2, 3),
    space="data",
    references=REFERENCES,
    claims=lambda order: 1,
    longest=LONGEST,
)
def sa_solver(
    nodes: Sequence[Node],
    target: Node,
    *,
    order: int = 3,
    previous_order: int = 0,
    ahead: float,
    schedule: NoiseSchedule,
    corrector_order: int = 4,
    eta: float = 1.0,
    start: float | None = None,
    end: float | None = None,
) -> Row:
    """SA-Solver, orders 1-3: predictor and corrector (PEC), stochastic, one model call a step.

    Steps whose end lies from `start` to `end` (sigma / alpha; by default .8 to .2 of the model's time) add noise, tau
    = `eta`; others are deterministic. `corrector_order` counts the new prediction; 0 is none.
    """
    check_choice("corrector_order", corrector_order, CORRECTORS)
    stepper, source = Stepper(schedule, eta, start, end), nodes[-1]
    seen = latest(nodes, 5)
    if target.sigma == 0 or not seen:
        return _first_order(stepper.step(source, target))
    step, known = stepper.step(source, target), [node for _, node in seen]
    predictor = max(1, min(order, int(min(ahead, 4))))
    history = list(step.adams(known[:predictor][::-1]))
    corrector = min(corrector_order, int(min(ahead, 4)) + 1, len(known))
    if corrector and len(known) > 1:
        used = min(max(previous_order, 1), int(min(ahead, 4)) + 1)
        change = correction(stepper.step(known[1], source), known[1:], used, corrector)
        history = [new + step.sample * old for new, old in itertools.zip_longest(history, change, fillvalue=0.0)]
    return Row(source, target, Weights(step.sample, history=tuple(history), noise=step.noise))


@solver(
    "sa-solver-pece",
    order=3,
    space="data",
    references=REFERENCES,
    stages=(1.0,),
    whole_steps=True,
    claims=lambda order: 1,
)
def sa_solver_pece(
    nodes: Sequence[Node],
    target: Node,
    *,
    order: int = 2,
    ahead: float,
    schedule: NoiseSchedule,
    published: bool = False,
    predictor_order: int = 3,
    corrector_order: int = 4,
    eta: float = 1.0,
    start: float | None = None,
    end: float | None = None,
) -> Row:
    """SA-Solver that evaluates again after the correction (PECE), stochastic, two model calls a step."""
    check_choice("predictor_order", predictor_order, CORRECTORS[1:4])
    check_choice("corrector_order", corrector_order, CORRECTORS[1:])
    stepper, source = Stepper(schedule, eta, start, end), nodes[-1]
    seen = latest(nodes, 5)
    known, left = [node for _, node in seen], int(min(ahead, 4))
    if order == 1:
        step = stepper.step(source, target)
        if target.sigma == 0 or not known:
            return _first_order(step)
        predictor = _predictor(known, target, predictor_order, left, published)
        history = spread(step.adams(known[:predictor][::-1]), seen)
        return Row(source, target, Weights(step.sample, history=tuple(history), noise=step.noise))
    if len(known) < 2:
        return Row(source, target, Weights(1.0))  # from zero SNR there is nothing to correct with
    predictor = _predictor(known[1:], source, predictor_order, left + 1, published)
    corrector = min(corrector_order, left + 1, len(known))
    change = correction(stepper.step(known[1], source), known[1:], predictor, corrector)
    return Row(source, target, Weights(1.0, history=tuple(spread(change, seen))))


def _predictor(known: Sequence[Node], target: Node, order: int, left: int, published: bool) -> int:
    """How many predictions, made at `known`, newest first, the predictor reads: fewer before a long step."""
    most = max(1, min(order, left, len(known)))
    if published or len(known) == 1:
        return most
    step = log_step(known[0], target)
    if step > RATIO * log_step(known[1], known[0]) and known[0].sbar < NOISY:
        return 1
    return min(most, 2) if step > LONGEST[2] else most


def _first_order(step: ExponentialStep) -> Row:
    if step.target.sigma == 0:
        return Row(step.source, step.target, ddim_weights(step.source, step.target))
    return Row(step.source, step.target, Weights(step.sample, data=step.constant, noise=step.noise))
