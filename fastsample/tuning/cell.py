"""One cell of a preset: the stages for a number of evaluations at a guidance, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.tables.table import Table
from fastsample.tuning.budget import KEPT, SECOND_LOOK
from fastsample.tuning.choose import simplest
from fastsample.tuning.grid import Base, grid_family
from fastsample.tuning.joint import RIDGES, changes, joint_family
from fastsample.tuning.linear import Linear
from fastsample.tuning.newton import Best, Family, improve
from fastsample.tuning.pairs import Pairs, loss
from fastsample.tuning.problem import Problem
from fastsample.tuning.rows import fit_rows
from fastsample.tuning.screen import Cell, cells, checked_base, screen
from fastsample.tuning.stages import Stages
from fastsample.tuning.teacher import Teacher

Array = NDArray[np.float64]
SCREENED = 4
"""The part of what a cell may spend that each look of the screen takes at most."""
GRID_ITERATIONS, JOINT_ITERATIONS = 6, 4


@dataclass(frozen=True, eq=False)
class Candidate:
    """A table, the base that it was tuned from, and its errors on the pairs tuned on and on those that validate."""

    stage: str
    cell: Cell
    linear: Linear
    tune: Array
    validation: Array

    def table(self, prediction_type: str) -> Table:
        """As samplers run it: the solver's own table, or that of its tuned weights."""
        if self.stage in ("untuned", "grid"):
            return self.cell.base.on(self.linear.nodes)
        return self.linear.table(prediction_type, f"tuned {self.cell.base.solver}")

    def to_dict(self) -> dict[str, Any]:
        """As a stage's record holds it."""
        base = self.cell.base
        return {
            "stage": self.stage,
            "solver": base.solver,
            "options": base.options,
            "grid": self.cell.grid,
            "lams": [node.lam for node in self.linear.nodes[1:-1]],
            "weights": self.linear.weights.tolist(),
            "tune": self.tune.tolist(),
            "validation": self.validation.tolist(),
        }

    @classmethod
    def from_dict(cls, problem: Problem, known: dict[str, Any]) -> Candidate:
        """From what :meth:`to_dict` gave."""
        base, lams = Base(problem, known["solver"], known["options"]), np.array(known["lams"])
        linear = Linear(problem.nodes(lams), np.array(known["weights"]))
        cell = Cell(base, known["grid"], lams, linear)
        return cls(known["stage"], cell, linear, np.array(known["tune"]), np.array(known["validation"]))


@dataclass(frozen=True, eq=False)
class CellTuner:
    """The stages for `count` evaluations: `tune` pairs, a `few` of them, `validation` pairs, and a teacher of `tune`.

    `weights` says whether there are pairs enough to tune more than the grid; `difference` is how far log-SNRs are
    moved to see their effect.
    """

    count: int
    few: Pairs
    tune: Pairs
    validation: Pairs
    teacher: Teacher
    stages: Stages
    objective: str
    weights: bool
    difference: float
    name: str
    solver: str | None = None  # the only one to tune; None: the best

    def candidates(self) -> list[Candidate]:
        """The best untuned cell, then what the stages made of the best bases, the simplest first."""
        problem = self.tune.problem

        def load(known: dict[str, Any]) -> Candidate:
            return Candidate.from_dict(problem, known)

        untuned, *bases = map(load, self._stage("screen", self._screened))
        found = [untuned]
        grids = [load(self._stage(f"grid {n}", partial(self._grid, base))) for n, base in enumerate(bases)]
        if grids:
            begun = min(grids, key=self._validated)
            found.append(begun)
            if self.weights and self._affords_rows():
                found.append(load(self._stage("rows", partial(self._rows, begun))))
                begun = min(found[1:], key=self._validated)
            if self.weights:
                found.append(load(self._stage("joint", partial(self._joint, begun))))
        return found

    def chosen(self, found: list[Candidate]) -> Candidate:
        """The simplest within a standard error of the best on the validation pairs."""
        return found[simplest([candidate.validation for candidate in found])]

    # --- the stages: what each returns is kept as JSON ---------------------------------------------------

    def _stage(self, name: str, make: Callable[[], Any]) -> Any:
        return self.stages.value(f"{self.name} {name}".replace(" ", "-"), make)

    def _validated(self, candidate: Candidate) -> float:
        return float(loss(candidate.validation, self.objective))

    def _screened(self) -> list[dict[str, Any]]:
        """The best untuned cell, and the best cells of KEPT solvers, on any grid."""
        problem, report = self.tune.problem, self.stages.report
        found = cells(problem, self.count, checked_base(self.solver), teacher=self.teacher)
        share = self.tune.purse.left // SCREENED
        affordable = max(2, share // self.few.cost(self.count, [0]))
        ranked = screen(spread_out(found, affordable), self.few, self.objective, lambda text: None)
        fewest, most = SECOND_LOOK
        looked = ranked[: min(most, max(fewest, share // self.tune.cost(self.count, [0])))]
        if not any(cell.untuned for cell in looked):
            looked.append(next(cell for cell in ranked if cell.untuned))
        ranked = screen(looked, self.tune, self.objective, report)
        untuned = next(cell for cell in ranked if cell.untuned)
        bases: list[Cell] = []
        for cell in ranked:
            if len(bases) < KEPT and all(cell.base.solver != other.base.solver for other in bases):
                bases.append(cell)
        kept = [untuned, *bases]
        held_out = self.validation.errors([cell.linear for cell in kept])
        return [
            Candidate("untuned", cell, cell.linear, cell.errors, errors).to_dict()
            for cell, errors in zip(kept, held_out, strict=True)
        ]

    def _grid(self, base: Candidate) -> dict[str, Any]:
        family = grid_family(base.cell.base, self.count - 1, self.difference)
        start = Best(base.cell.lams, base.linear, base.tune, base.validation)
        best = self._improved(family, start, GRID_ITERATIONS)
        return Candidate("grid", base.cell, best.table, best.tune, best.validation).to_dict()

    def _rows(self, grid: Candidate) -> dict[str, Any]:
        linear = fit_rows(grid.linear, self.tune, self.teacher)
        errors = self.tune.errors([linear])[0], self.validation.errors([linear])[0]
        return Candidate("rows", grid.cell, linear, *errors).to_dict()

    def _joint(self, begun: Candidate) -> dict[str, Any]:
        lams = np.array([node.lam for node in begun.linear.nodes[1:-1]])
        values = np.append(lams, changes(begun.linear, begun.cell.base.at(lams)))
        tried = [Best(values, begun.linear, begun.tune, begun.validation)]
        for ridge in RIDGES:
            family = joint_family(begun.cell.base, self.count, self.difference, ridge)
            tried.append(self._improved(family, tried[-1], JOINT_ITERATIONS))
        best = tried[simplest([one.validation for one in tried])]
        return Candidate("joint", begun.cell, best.table, best.tune, best.validation).to_dict()

    def _affords_rows(self) -> bool:
        own = [0]
        return 2 * self.tune.cost(self.count, own) + self.validation.cost(self.count, own) <= self.tune.purse.left

    def _improved(self, family: Family, start: Best, iterations: int) -> Best:
        return improve(
            family,
            start,
            self.tune,
            self.validation,
            iterations=iterations,
            objective=self.objective,
            report=self.stages.report,
        )


def spread_out(found: list[Cell], most: int) -> list[Cell]:
    """`most` of the cells, over all solvers: each solver's first grids, then its next ones."""
    by_solver: dict[str, list[Cell]] = {}
    for cell in found:
        by_solver.setdefault(repr((cell.base.solver, cell.base.options)), []).append(cell)
    turns = max(map(len, by_solver.values()), default=0)
    return [own[turn] for turn in range(turns) for own in by_solver.values() if turn < len(own)][:most]
