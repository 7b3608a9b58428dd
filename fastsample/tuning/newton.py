"""Damped least squares over the parameters of a table, by forward calls alone (Gauss, Newton, Levenberg, Marquardt).

Derivatives are differences. A parameter that first matters at evaluation i needs evaluations from there on only, and
all parameters are moved in one batch. They are measured once, then corrected by what each step did (Broyden's
rank-one update), and measured again only where they no longer lead down: most of an iteration's cost is theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsample.tuning.linear import Linear
from fastsample.tuning.pairs import Pairs, loss, weights

Array = NDArray[np.float64]
DAMPING = (1e-3, 3e-2, 1.0)
"""Relative to the curvature along each parameter; all are tried, in one batch."""
PATIENCE = 2
"""Iterations without a gain on the validation pairs that end it."""
WORTH = 5e-3
"""The relative gain on the pairs tuned on below which derivatives are measured anew, and fresh ones end it."""


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

    def improve(self, start: Best, iterations: int, ridge: float = 0.0) -> Best:
        """The best on the validation pairs of all tables passed from `start` on.

        Ends when that stops falling, or when the purse does not hold another iteration.
        """
        best, values, waited = start, start.values, 0
        now, least = self._loss(start.tune), self._loss(start.validation)
        for iteration in range(iterations):
            slopes = self._at(values, start.table.count)
            if slopes is None or not self._affords(start.table.count, measured=False):
                break
            moved = [self.family.limit(values, values + step) for step in self._steps(slopes, ridge)]
            tables = [self.family.build(candidate) for candidate in moved]
            final = self.tune.roll_out(tables).final
            errors = self.tune.distances(final)
            losses = loss(errors, self.objective)
            chosen = int(np.argmin(losses))
            gain = 1 - float(losses[chosen]) / now
            if not gain >= WORTH and not slopes.fresh:
                self._slopes = None
                continue
            if not gain > 0:
                break
            now, values = float(losses[chosen]), moved[chosen]
            self._slopes = slopes.moved(values, final[chosen] - self.tune.reference)
            held_out = self.validation.errors([tables[chosen]])[0]
            validated = self._loss(held_out)
            self.report(f"iteration {iteration + 1}: {now:.4f}, validation {validated:.4f}")
            waited += 1
            if validated < least:
                best, least, waited = Best(values, tables[chosen], errors[chosen], held_out), validated, 0
            if waited == PATIENCE or gain < WORTH:
                break
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
        """Whether the purse holds another iteration: the damped steps, their validation, and derivatives if asked."""
        tried = self.tune.cost(count, [0] * len(DAMPING)) + self.validation.cost(count, [0])
        return tried + measured * self.tune.cost(count, [0, *self.family.begins]) <= self.tune.purse.left

    def _measured(self, values: Array) -> Slopes:
        family = self.family
        moved = [values, *(values + np.diag(family.difference))]
        final = self.tune.roll_out([family.build(each) for each in moved], [0, *family.begins]).final
        columns = final[1:] - final[:1]
        columns = columns / columns.new_tensor(family.difference).reshape(-1, *[1] * (columns.ndim - 1))
        return Slopes(values, final[0] - self.tune.reference, columns, fresh=True)

    def _steps(self, slopes: Slopes, ridge: float) -> list[Array]:
        """The steps of least squares at each damping."""
        size, unit = len(slopes.values), self.tune.spread * np.sqrt(slopes.residual[0].numel())
        errors = self.tune.distances((slopes.residual + self.tune.reference)[None])[0]
        scale = slopes.residual.new_tensor(weights(errors, self.objective) / unit)
        residual = (slopes.residual.flatten(1) * scale[:, None]).flatten()
        columns = (slopes.columns.flatten(2) * scale[None, :, None]).flatten(1)
        curvature = (columns @ columns.T).cpu().double().numpy()
        slope = (columns @ residual).cpu().double().numpy()
        held = ridge * self.family.held * np.trace(curvature) / size
        along = np.diag(np.diag(curvature) + 1e-9 * np.trace(curvature) / size)
        return [
            -np.linalg.solve(curvature + np.diag(held) + damping * along, slope + held * slopes.values)
            for damping in DAMPING
        ]
