"""The grid of a solver, tuned: its log-SNRs by damped least squares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.base import Node
from fastsample.solvers import build_table_on_nodes, get_solver
from fastsample.tables.table import Table
from fastsample.tuning.linear import Linear, linear_of
from fastsample.tuning.newton import Family
from fastsample.tuning.problem import Problem

Array = NDArray[np.float64]
KEPT = 0.3
"""The part of a step between two nodes that an iteration leaves at least, so that nodes stay in order."""
MARGIN = 0.05
"""By how much the last node may still move up where it is cleaner than the cleanest already."""
NOISIEST = -10.0
"""The log-SNR that stands for pure noise where steps are measured."""


class Base:
    """A solver with its options, as tables on any grid of a problem."""

    def __init__(self, problem: Problem, solver: str, options: dict[str, Any]) -> None:
        self.problem, self.solver, self.options = problem, solver, options

    @property
    def written(self) -> str:
        """Its options as they are typed."""
        return ",".join(f"{key}={value}" for key, value in self.options.items())

    def on(self, nodes: Sequence[Node]) -> Table:
        """Its table on `nodes`, as a scheduler makes it. ValueError where there is none."""
        lowers = get_solver(self.solver).lower_final
        prediction = self.problem.prediction_type
        return build_table_on_nodes(
            self.solver, nodes, prediction_type=prediction, lower_final=lowers, **self.options
        )

    def at(self, lams: Array) -> Linear:
        """Its table, as a linear one, on the grid with the inner log-SNRs `lams`."""
        return linear_of(self.on(self.problem.nodes(lams)))


def grid_family(base: Base, count: int, difference: float) -> Family:
    """The tables of `base` by their inner log-SNRs, `count` of them."""
    return Family(
        base.at,
        tuple(range(1, count + 1)),
        np.full(count, difference),
        np.zeros(count),
        ordered(base.problem, count),
    )


def ordered(problem: Problem, count: int) -> Callable[[Array, Array], Array]:
    """A limit of moves whose first `count` parameters are log-SNRs: no step shrinks below KEPT of what it was.

    The step that is left to the cleanest log-SNR is one of them.
    """
    first, last = max(problem.first.lam, NOISIEST), problem.cleanest

    def limit(values: Array, moved: Array) -> Array:
        end = max(last, values[count - 1] + MARGIN)
        before = np.diff(np.concatenate([[first], values[:count], [end]]))
        after = np.diff(np.concatenate([[first], moved[:count], [end]]))
        short = after < KEPT * before
        if not short.any():
            return moved
        share = float(np.min((1 - KEPT) * before[short] / (before[short] - after[short])))
        return np.asarray(values + share * (moved - values))

    return limit
