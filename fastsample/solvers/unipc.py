"""UniPC: a predictor and a corrector that reuses the next evaluation (Zhao et al. 2023, arXiv:2302.04867).

The corrected sample is never fed to the model, so correcting and predicting again are one row. It needs no copy of
the sample before the prediction either: the corrected one differs from the predicted one by outputs alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.exponential import ExponentialStep
from fastsample.solvers.registry import check_choice, solver
from fastsample.tables.interpolation import interpolation_weights
from fastsample.tables.prediction import Space
from fastsample.tables.row import Row, Weights, ddim_weights

TYPES = ("bh1", "bh2")
LONGEST = 1.7
"""The longest step in log-SNR that is corrected on noise predictions, whose weights grow by e^h."""


def difference_weights(step: ExponentialStep, ratios: Sequence[float], solver_type: str) -> tuple[float, ...]:
    """Weights of the difference quotients `(f(lam_s + ratio h) - f(lam_s)) / ratio` (eq. 9 with B(h)).

    With more than one, they solve the order conditions and B(h) cancels; with one the paper takes B(h) / 2,
    B(h) = h ("bh1") or e^h - 1 ("bh2").
    """
    if len(ratios) == 1:
        return (0.5 * (step.constant if solver_type == "bh2" else step.scale * step.h),)
    return interpolation_weights(ratios, [step.moment(k + 1) for k in range(len(ratios))]) if ratios else ()


def quotients(step: ExponentialStep, ratios: Sequence[float], solver_type: str) -> list[float]:
    """As :func:`difference_weights`, of the differences themselves."""
    weights = difference_weights(step, ratios, solver_type)
    return [weight / ratio for weight, ratio in zip(weights, ratios, strict=True)]


def predict(step: ExponentialStep, older: Sequence[Node], solver_type: str) -> list[float]:
    """UniP: weights of the prediction at the source and of those at `older`, newest first."""
    k = quotients(step, ratios_of(step, older), solver_type)
    return [step.constant - sum(k), *k]


def correct(step: ExponentialStep, older: Sequence[Node], solver_type: str) -> list[float]:
    """UniC less UniP: weights of the prediction at the target, at the source and at `older`, which sum to 0."""
    ratios = ratios_of(step, older)
    *k, newest = quotients(step, [*ratios, 1.0], solver_type)
    change = [new - old for new, old in zip(k, quotients(step, ratios, solver_type), strict=True)]
    return [newest, -newest - sum(change), *change]


def ratios_of(step: ExponentialStep, older: Sequence[Node]) -> list[float]:
    """Where `older` lie, as parts of the step in log-SNR from its source."""
    start, h = step.source.lam, step.h
    return [(node.lam - start) / h for node in older]


def unipc(
    nodes: Sequence[Node],
    target: Node,
    space: Space,
    order: int,
    previous_order: int,
    solver_type: str,
    corrector: bool,
    disable_corrector: Sequence[int],
) -> Row:
    """One row: the corrector onto the newest node with the previous step's order, then the predictor.

    `disable_corrector` lists steps after which there is none, counted from 0.
    """
    check_choice("solver_type", solver_type, TYPES)
    if not isinstance(corrector, bool):
        raise ValueError(f"corrector = {corrector!r}: use True or False")
    if not isinstance(disable_corrector, (list, tuple)) or not all(map(_is_step, disable_corrector)):
        raise ValueError(f"disable_corrector = {disable_corrector!r}: give a list of steps, counted from 0")
    source = nodes[-1]

    def usable(node: Node) -> bool:  # zero SNR is infinitely far away
        return node.alpha > 0 if space == "data" else node.has_signal

    if not usable(source):
        return Row(source, target, ddim_weights(source, target), space)
    window = nodes[-1 - max(order, previous_order) : -1]
    older = [node for node in reversed(window) if usable(node)]
    step = ExponentialStep(source, target, space)
    predicted = predict(step, older[: order - 1], solver_type)
    correction: list[float] = []
    back = ExponentialStep(older[0], source, space) if older else step
    corrects = corrector and bool(older) and len(nodes) - 2 not in disable_corrector
    if corrects and (space == "data" or back.h <= LONGEST):
        # the sample is what the predictor made of the same outputs but for the newest: X base cancels
        correction = [step.sample * weight for weight in correct(back, older[1:previous_order], solver_type)]
    history = [a + b for a, b in itertools.zip_longest(correction, predicted, fillvalue=0.0)]
    return Row(source, target, Weights(step.sample, history=tuple(history)), space)


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _register(name: str, space: Space, form: str) -> None:
    @solver(
        name,
        order=2,
        orders=(1, 2, 3),
        space=space,
        references=("arXiv:2302.04867",),
        summary=f"UniPC on {form} predictions, orders 1-3: predictor and corrector, one model call a step",
        always_lowers=True,
    )
    def rule(
        nodes: Sequence[Node],
        target: Node,
        *,
        order: int = 2,
        previous_order: int = 0,
        solver_type: str = "bh2",
        corrector: bool = True,
        disable_corrector: Sequence[int] = (),
    ) -> Row:
        return unipc(nodes, target, space, order, previous_order, solver_type, corrector, disable_corrector)


_register("unipc", "data", "data")
_register("unipc-noise", "noise", "noise")
