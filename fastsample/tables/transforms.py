"""Table to table: changes that hold for any solver."""

from __future__ import annotations

from dataclasses import replace

from fastsample.schedules.base import Node
from fastsample.tables.prediction import prediction_weights
from fastsample.tables.step import Combination, Step
from fastsample.tables.table import Table


def dualfast(table: Table, strength: float, *, multistep: bool = True) -> Table:
    """DualFast (arXiv:2506.13058): replace the noise prediction of each first-order term by one with less error.

    `eps' = (1 + c) eps(x_t, t) - c eps(x_T, T)`, T the first evaluation, whose output is kept: no further model
    call. Only the first-order term, `(sigma_t - alpha_t sigma_s / alpha_s) eps`, the same in noise and data form,
    is changed. c grows linearly in sigma / (alpha + sigma) from 0 at the first evaluation to `strength` on clean
    data. It lessens the network's own approximation error, not that of the solver: an exact model gains nothing.
    Raises ValueError unless 0 <= strength < 1, and for stochastic and (not `multistep`) single-step tables.
    """
    if isinstance(strength, (bool, str)) or not 0 <= strength < 1:
        raise ValueError(f"dualfast = {strength!r}: give a number in [0, 1) (0 means none)")
    if table.stochastic or not multistep or any("base" in step.states for step in table.steps):
        raise ValueError(
            f"dualfast = {strength!r} needs a deterministic multistep solver, {table.solver!r} is not: use "
            "'ddim' or 'dpmpp-2m'"
        )
    first = table.steps[0]
    a, b = prediction_weights(first.node, table.prediction_type, "noise")
    anchored = replace(first, states={**first.states, "anchor": Combination(a, b)})
    rest = [_corrected(step, first.node, strength, table.prediction_type) for step in table.steps[1:]]
    return replace(table, steps=(anchored, *rest))


def _corrected(step: Step, first: Node, strength: float, prediction_type: str) -> Step:
    """`step` with c times its first-order term moved from the first evaluation to its own."""
    c = strength * (1 - step.node.fraction / first.fraction)
    weight = c * (step.target.sigma - step.target.alpha * step.node.sbar)
    a, b = prediction_weights(step.node, prediction_type, "noise")
    moved = replace(
        step.next,
        sample=step.next.sample + weight * a,
        output=step.next.output + weight * b,
        states={**step.next.states, "anchor": -weight},
    )
    return replace(step, next=moved)
