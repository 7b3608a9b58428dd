"""Damped least squares over the parameters of a table, by forward calls alone (Gauss, Newton, Levenberg, Marquardt).

Derivatives are differences. A parameter that first matters at evaluation i needs evaluations from there on only, and
all parameters are moved in one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsample.tuning.linear import Linear
from fastsample.tuning.pairs import Pairs, loss, weights

Array = NDArray[np.float64]
DAMPING = (1e-3, 1e-2, 1e-1, 1.0)
"""Relative to the curvature along each parameter; all are tried, in one batch."""
PATIENCE = 2
"""Iterations without a gain on the validation pairs that end it."""
WORTH = 2e-3
"""The relative gain on the pairs tuned on below which it ends."""


@dataclass(frozen=True, eq=False)
class Family:
    """Tables by their parameters: `build(values)`; parameter k matters from evaluation `begins[k]` on.

    `difference` is how far a parameter is moved to see its effect, `ridge` the weight of its square, relative to the
    mean curvature; `limit(values, moved)` keeps a move within what is a table.
    """

    build: Callable[[Array], Linear]
    begins: tuple[int, ...]
    difference: Array
    ridge: Array
    limit: Callable[[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Best:
    """The best parameters on the validation pairs, the table, and its errors on both kinds of pairs, each [P]."""

    values: Array
    table: Linear
    tune: Array
    validation: Array


def improve(
    family: Family,
    start: Best,
    tune: Pairs,
    validation: Pairs,
    *,
    iterations: int,
    objective: str,
    report: Callable[[str], None],
) -> Best:
    """Lower the loss on `tune`, from `start`; the best on `validation` of all that were passed.

    Ends when that stops falling, or when the purse does not hold another iteration.
    """
    best, values, table = start, start.values, start.table
    now, least, waited = float(loss(best.tune, objective)), float(loss(best.validation, objective)), 0
    for iteration in range(iterations):
        if not _affords(family, tune, validation, table.count):
            break
        steps = _steps(family, values, tune, objective)
        moved = [family.limit(values, values + step) for step in steps]
        tables = [family.build(candidate) for candidate in moved]
        errors = tune.errors(tables)
        losses = loss(errors, objective)
        chosen = int(np.argmin(losses))
        if not losses[chosen] < now:
            break
        gain, now, values, table = 1 - losses[chosen] / now, float(losses[chosen]), moved[chosen], tables[chosen]
        held_out = validation.errors([table])[0]
        validated = float(loss(held_out, objective))
        report(f"iteration {iteration + 1}: {now:.4f}, validation {validated:.4f}")
        waited += 1
        if validated < least:
            best, least, waited = Best(values, table, errors[chosen], held_out), validated, 0
        if waited == PATIENCE or gain < WORTH:
            break
    return best


def _affords(family: Family, tune: Pairs, validation: Pairs, count: int) -> bool:
    """Whether the purse holds another iteration: derivatives, the damped steps, and their validation."""
    moving = tune.cost(count, [0, *family.begins]) + tune.cost(count, [0] * len(DAMPING))
    return moving + validation.cost(count, [0]) <= tune.purse.left


def _steps(family: Family, values: Array, tune: Pairs, objective: str) -> list[Array]:
    """The steps of least squares at each damping."""
    size = len(values)
    moved = [values, *(values + family.difference[k] * np.eye(size)[k] for k in range(size))]
    final = tune.roll_out([family.build(each) for each in moved], [0, *family.begins]).final
    scale = weights(tune.distances(final[:1])[0], objective) / tune.spread
    residuals = (final - tune.reference).flatten(2)
    residuals = residuals * residuals.new_tensor(scale)[None, :, None] / np.sqrt(residuals[0].numel())
    residual = residuals[0].flatten()
    columns = (residuals[1:] - residuals[:1]).flatten(1) / residuals.new_tensor(family.difference)[:, None]
    curvature = (columns @ columns.T).cpu().double().numpy()
    slope = (columns @ residual).cpu().double().numpy()
    ridge = family.ridge * np.trace(curvature) / size
    along = np.diag(np.diag(curvature) + 1e-9 * np.trace(curvature) / size)
    return [
        -np.linalg.solve(curvature + np.diag(ridge) + damping * along, slope + ridge * values) for damping in DAMPING
    ]
