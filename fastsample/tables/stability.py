"""How far a step may build on the past before guidance makes it unstable: fractional orders.

In y = x / alpha and s = sigma / alpha every sampler solves `dy / d log s = y - D`, D the data prediction. A
perturbation of y decays at the rate `m = 1 - dD / dy`: up to 1 without guidance, where D follows y. Guidance G makes
D = D_free + G (D_asked - D_free), whose parts follow y at different noise levels, and m rises to about
`1 + (G - 1) sech(lam)`, lam = log(alpha / sigma): on the bundled flow-matching model the largest |m| is 2.5 at G = 3
and 4.3 at G = 5, near lam = 0, and 1 to 1.5 at both ends. A first-order step to t multiplies a perturbation by 1 - z,
`z = m (1 - s_t / s)`, and is stable while z <= 2. A step that weighs predictions of alternating sign R times as much
(Adams-Bashforth of order 2, 3, 4: R = 2, 3.7, 6.7) is stable while z R <= 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from fastsample.schedules.base import Node
from fastsample.tables.row import Row, Weights


def stiffness(lam: float, guidance: float) -> float:
    """m at a log-SNR of `lam`, under a `guidance` scale."""
    return 1 + (guidance - 1) / math.cosh(min(abs(lam), 700.0))


def allowed_gain(source: Node, target: Node, guidance: float) -> float:
    """The largest R of a stable step from `source`, at the stiffest level that it passes."""
    if not source.has_signal:
        return math.inf  # no prediction there depends on the sample
    stiffest = min(max(source.lam, 0.0), target.lam)
    return 2 / (stiffness(stiffest, guidance) * (1 - target.sbar / source.sbar))


def alternating_gain(row: Row) -> float:
    """R: what `row` makes of predictions that alternate in sign, relative to what it makes of equal ones."""
    weights = row.next
    total = _total(weights)
    if not total:
        return 1.0
    entry = velocity = 1.0
    if row.entry is not None:  # entry <- fresh prediction + kept entry: what that mean leaves of the alternation
        fresh, kept = (*row.entry.history, 0.0)[:2]
        entry = fresh / (1 + kept)
    if "velocity" in row.states:
        update = row.states["velocity"]
        velocity = _alternating(update.history) / (1 + update.states.get("velocity", 0.0))
    newest, past = weights.history[:1], weights.history[1:]
    swing = sum(newest) - entry * _alternating(past) - velocity * weights.states.get("velocity", 0.0)
    return swing / total


def stable(rows: Iterator[Row], guidance: float) -> Row:
    """One step's row of the highest order, whole or in between, that is stable under `guidance`.

    `rows` are those of the orders asked for and below, to 2; between neighbours their weights are blended, and below
    order 2 with the first-order step. What enters history and states is the asked row's.
    """
    asked = upper = next(rows)
    most = allowed_gain(asked.source, asked.target, guidance)
    if alternating_gain(asked) <= max(most, 1.0):
        return asked
    for lower in itertools.chain(rows, [replace(asked, next=_first_order(asked.next), states={}, entry=None)]):
        low, high = alternating_gain(lower), alternating_gain(upper)
        if low <= most:
            share = (most - low) / (high - low)
            return replace(asked, next=_blended(upper.next, lower.next, share))
        upper = lower
    return replace(asked, next=upper.next)


def _first_order(weights: Weights) -> Weights:
    """All the weight of the predictions on the newest one."""
    return Weights(weights.sample, weights.data, (_total(weights),), noise=weights.noise)


def _blended(upper: Weights, lower: Weights, share: float) -> Weights:
    def mean(a: float, b: float) -> float:
        return share * a + (1 - share) * b

    history = itertools.zip_longest(upper.history, lower.history, fillvalue=0.0)
    names = {**upper.states, **lower.states}
    return Weights(
        mean(upper.sample, lower.sample),
        mean(upper.data, lower.data),
        tuple([mean(a, b) for a, b in history]),
        {name: mean(upper.states.get(name, 0.0), lower.states.get(name, 0.0)) for name in names},
        upper.noise,
    )


def _total(weights: Weights) -> float:
    return math.fsum([*weights.history, *weights.states.values()])


def _alternating(values: tuple[float, ...]) -> float:
    return sum(values[::2]) - sum(values[1::2])
