"""Damped least squares over the parameters of a table, by forward calls alone (Gauss, Newton, Levenberg, Marquardt).

Derivatives are differences. A parameter that first matters at evaluation i needs evaluations from there on only, and
all parameters are moved in one batch. They are measured once, then corrected by what each step did, a step that is
not taken too (Broyden's rank-one update), and measured again only where they no longer lead down: they cost as much
as five to ten steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsample.tuning.linear import Linear
from fastsample.tuning.pairs import Pairs, loss, weights

Array = NDArray[np.float64]
DAMPING = 1e-2
"""Of the first step, relative to the curvature along each parameter."""
EASED, RAISED = 3.0, 10.0
"""What it is divided by after a step that lowered the loss, and multiplied by after one that did not."""
WORTH = 5e-3
"""The relative gain on the pairs tuned on below which a step is none."""
PATIENCE = 3
"""Such steps in a row, after which derivatives are measured anew; where that gains nothing either, it ends."""


@dataclass(frozen=True, eq=False)
class Family:
    """Tables by their parameters: `build(values)`; parameter k matters from evaluation `begins[k]` on.

    `difference` is how far a parameter is moved to see its effect; `held` are 1 where a ridge draws it to 0, else 0;
    `limit(values, moved)` keeps a move within what is a table.
    """

    build: Callable[[Array], Linear]
    begins: tuple[int, ...]
    difference: Array
    held: Array
    limit: Callable[[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Best:
    """The best parameters on the validation pairs, the table, and its errors on both kinds of pairs, each [P]."""

    values: Array
    table: Linear
    tune: Array
    validation: Array


@dataclass(frozen=True, eq=False)
class Slopes:
    """Residuals [P, ..] at `values`, and their derivatives `columns` [K, P, ..]; `fresh` ones were just measured."""

    values: Array
    residual: Tensor
    columns: Tensor
    fresh: bool

    def moved(self, values: Array, residual: Tensor) -> Slopes:
        """At `values`, where the residuals are known: with the least change to the derivatives that explains them."""
        step = self.columns.new_tensor(values - self.values)
        along = step.reshape(-1, *[1] * residual.ndim)
        unexplained = residual - self.residual - (along * self.columns).sum(0)
        return Slopes(values, residual, self.columns + along * unexplained / step.square().sum(), fresh=False)


class Descent:
    """Lowers the loss of a family's tables on the pairs `tune`; what validates is their loss on `validation`."""

    def __init__(
        self, family: Family, tune: Pairs, validation: Pairs, objective: str, report: Callable[[str], None]
    ) -> None:
        self.family, self.tune, self.validation = family, tune, validation
        self.objective, self.report = objective, report
        self._slopes: Slopes | None = None

    def improve(self, start: Best, steps: int, ridge: float = 0.0) -> Best:
        """The best on the validation pairs of the tables passed from `start` on, in so many steps at most.

        Ends when the loss stops falling, or when the purse does not hold another step.
        """
        best, values, now, damping = start, start.values, self._loss(start.tune), DAMPING
        idle, measured_at = 0, now  # steps without a gain; the loss where derivatives were measured last
        for number in range(1, steps + 1):
            slopes = self._at(values, start.table.count)
            if slopes is None or not self._affords(start.table.count, measured=False):
                break
            if slopes.fresh:
                measured_at = now
            moved = self.family.limit(values, values + self._step(slopes, ridge, damping))
            table = self.family.build(moved)
            final = self.tune.roll_out([table]).final
            errors = self.tune.distances(final)[0]
            lowered = self._loss(errors)
            corrected = slopes.moved(moved, final[0] - self.tune.reference) if np.isfinite(lowered) else slopes
            idle = 0 if lowered < (1 - WORTH) * now else idle + 1
            if lowered < now:
                self._slopes, damping = corrected, damping / EASED
                now, values = lowered, moved
                held_out = self.validation.errors([table])[0]
                validated = self._loss(held_out)
                self.report(f"step {number}: {now:.4f}, validation {validated:.4f}")
                if validated < self._loss(best.validation):
                    best = Best(values, table, errors, held_out)
            else:
                self._slopes, damping = replace(slopes, columns=corrected.columns, fresh=False), damping * RAISED
            if idle == PATIENCE:
                if now > (1 - WORTH) * measured_at:
                    break
                self._slopes, idle, damping = None, 0, DAMPING
        return best

    def _loss(self, errors: Array) -> float:
        return float(loss(errors, self.objective))

    def _at(self, values: Array, count: int) -> Slopes | None:
        """The derivatives at `values`, measured where they are not known; None where the purse does not hold that."""
        if self._slopes is None or not np.array_equal(self._slopes.values, values):
            if not self._affords(count, measured=True):
                return None
            self._slopes = self._measured(values)
        return self._slopes

    def _affords(self, count: int, *, measured: bool) -> bool:
        """Whether the purse holds another step: the roll-out, its validation, and derivatives if asked."""
        tried = self.tune.cost(count, [0]) + self.validation.cost(count, [0])
        return tried + measured * self.tune.cost(count, [0, *self.family.begins]) <= self.tune.purse.left

    def _measured(self, values: Array) -> Slopes:
        family = self.family
        moved = [values, *(values + np.diag(family.difference))]
        final = self.tune.roll_out([family.build(each) for each in moved], [0, *family.begins]).final
        columns = final[1:] - final[:1]
        columns = columns / columns.new_tensor(family.difference).reshape(-1, *[1] * (columns.ndim - 1))
        return Slopes(values, final[0] - self.tune.reference, columns, fresh=True)

    def _step(self, slopes: Slopes, ridge: float, damping: float) -> Array:
        """The damped step of least squares."""
        size, unit = len(slopes.values), self.tune.spread * np.sqrt(slopes.residual[0].numel())
        errors = self.tune.distances((slopes.residual + self.tune.reference)[None])[0]
        scale = slopes.residual.new_tensor(weights(errors, self.objective) / unit)
        residual = (slopes.residual.flatten(1) * scale[:, None]).flatten()
        columns = (slopes.columns.flatten(2) * scale[None, :, None]).flatten(1)
        curvature = (columns @ columns.T).cpu().double().numpy()
        slope = (columns @ residual).cpu().double().numpy()
        held = ridge * self.family.held * np.trace(curvature) / size
        along = np.diag(np.diag(curvature) + 1e-9 * np.trace(curvature) / size)
        return np.asarray(-np.linalg.solve(curvature + np.diag(held) + damping * along, slope + held * slopes.values))
