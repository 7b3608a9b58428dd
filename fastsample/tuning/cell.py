"""One cell of a preset: the stages for a number of evaluations at a guidance, and what is kept of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.tables.preset import OWN_WEIGHTS
from fastsample.tables.table import Table
from fastsample.tuning.budget import ENOUGH, FIRST_LOOK, KEPT, LAST_LOOK, LOOKS, OPENED, RIVALS, SECOND_LOOK
from fastsample.tuning.grid import Base, grid_family
from fastsample.tuning.joint import RIDGES, changes, joint_family, told_times
from fastsample.tuning.linear import Linear
from fastsample.tuning.newton import Best, Descent, Family
from fastsample.tuning.pairs import Pairs, loss
from fastsample.tuning.problem import Problem
from fastsample.tuning.rollout import cost
from fastsample.tuning.rows import fit_rows, free_weights
from fastsample.tuning.screen import Cell, cells, checked_base, screen, screen_cost
from fastsample.tuning.stages import Stages
from fastsample.tuning.teacher import Teacher

Array = NDArray[np.float64]
GRID_STEPS, JOINT_STEPS = 6, 12
"""Of the grid, and of all together at each ridge, at most: most descents end sooner."""
PLANNED = GRID_STEPS + JOINT_STEPS
"""Those that a budget is made to hold, where weights are tuned."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A table, the base that it was tuned from, and its errors on the pairs tuned on and on those that validate."""

    stage: str
    cell: Cell
    linear: Linear
    tune: Array
    validation: Array

    @property
    def lams(self) -> Array:
        """The inner log-SNRs of its grid."""
        return np.array([node.lam for node in self.linear.nodes[1:-1]])

    def table(self, prediction_type: str) -> Table:
        """As samplers run it: the solver's own table, or that of its tuned weights."""
        if self.stage in OWN_WEIGHTS:
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
            "lams": self.lams.tolist(),
            "times": [node.time for node in self.linear.nodes],
            "weights": self.linear.weights.tolist(),
            "tune": self.tune.tolist(),
            "validation": self.validation.tolist(),
        }

    @classmethod
    def from_dict(cls, problem: Problem, known: dict[str, Any]) -> Candidate:
        """From what :meth:`to_dict` gave."""
        base, lams = Base(problem, known["solver"], known["options"]), np.array(known["lams"])
        own = zip(problem.nodes(lams), known["times"], strict=True)
        nodes = tuple(dataclasses.replace(node, time=time) for node, time in own)
        linear = Linear(nodes, np.array(known["weights"]))
        cell = Cell(base, known["grid"], lams, linear)
        return cls(known["stage"], cell, linear, np.array(known["tune"]), np.array(known["validation"]))


@dataclass(frozen=True, eq=False)
class Screened:
    """What the screen of so many `cells` found: the best as they are, and the bases that are tuned."""

    cells: int
    untuned: tuple[Candidate, ...]
    bases: tuple[Candidate, ...]


@dataclass(frozen=True, eq=False)
class CellTuner:
    """The stages for `count` evaluations, which may spend `most`.

    `first(n)` are the first n of the `given` pairs, whose trajectories are the `teacher`'s. `weights` says whether
    there are pairs enough to tune more than the grid; `difference` is how far log-SNRs are moved to see their effect.
    """

    count: int
    given: int
    first: Callable[[int], Pairs]
    validation: Pairs
    teacher: Teacher
    stages: Stages
    objective: str
    weights: bool
    difference: float
    name: str
    most: int
    solver: str | None = None  # the only one to tune; None: the best

    @cached_property
    def screened(self) -> Screened:
        """The best cells as they are, by the pairs tuned on and those that validate together."""
        known = self.stages.value(self._name("screen"), self._screen)
        problem = self.validation.problem
        untuned, bases = (
            tuple(Candidate.from_dict(problem, one) for one in known[kind]) for kind in ("untuned", "bases")
        )
        return Screened(known["cells"], untuned, bases)

    def candidates(self) -> list[Candidate]:
        """The best untuned cell, then the best of what each stage made of the bases, the simplest first."""
        made: dict[str, list[Candidate]] = {}
        for number, base in enumerate(self.screened.bases):
            if number and self._per_pair * self.tuned + self._validating > self.validation.purse.left:
                break
            for candidate in self._stages_of(number, base):
                made.setdefault(candidate.stage, []).append(candidate)
        return [self.screened.untuned[0], *(min(own, key=self._validated) for own in made.values())]

    def chosen(self, found: list[Candidate]) -> Candidate:
        """The best on the validation pairs, of those alike the simplest."""
        return min(found, key=self._validated)

    @cached_property
    def tuned(self) -> int:
        """How many pairs are tuned on: as many as the budget holds for all stages of one base, ENOUGH at least."""
        affordable = ((1 - sum(LOOKS)) * self._spare - self._validating) // self._per_pair
        return int(max(self._fewest, min(self.given, affordable)))

    # --- what they cost ----------------------------------------------------------------------------------

    @property
    def _fewest(self) -> int:
        return min(ENOUGH, self.given)

    @property
    def _looks(self) -> list[int]:
        """The least that each look of the screen costs: two cells, without opening the pairs."""
        pairs = 1, min(SECOND_LOOK, self.given), self._fewest + self.validation.count
        return [2 * (self.count - 1) * own for own in pairs]

    @property
    def _spare(self) -> int:
        """What is left of `most` beyond the least screen, which may look at a third cell in the end."""
        opened = OPENED * (1 + min(SECOND_LOOK, self.given) + self._fewest)
        third = (self.count - 1) * (self._fewest + self.validation.count)
        return max(0, self.most - sum(self._looks) - third - opened)

    @property
    def _steps(self) -> int:
        return PLANNED if self.weights else GRID_STEPS

    @property
    def _per_pair(self) -> int:
        """Evaluations of a pair in all stages of a base: derivatives, steps."""
        grid = range(1, self.count)
        told = range(1, 1 + told_times(self.validation.problem, self.count))
        joint = [0, *grid, *told, *(row + 1 for row, _ in free_weights(self.count))] if self.weights else []
        derivatives = cost(self.count, [0, *grid]) + (cost(self.count, joint) if joint else 0)
        return derivatives + self._steps * (self.count - 1)

    @property
    def _validating(self) -> int:
        return self._steps * self.validation.cost(self.count, [0])

    # --- the stages: what each returns is kept as JSON ---------------------------------------------------

    def _name(self, stage: str) -> str:
        return f"{self.name} {stage}".replace(" ", "-")

    def _validated(self, candidate: Candidate) -> float:
        return float(loss(candidate.validation, self.objective))

    def _screen(self) -> dict[str, Any]:
        """Successive halving: all cells on a few pairs, the best on more, the best of these on all that are used."""
        step, more = self.count - 1, min(SECOND_LOOK, self.given)
        shares = [least + int(part * self._spare) for least, part in zip(self._looks, LOOKS, strict=True)]
        every = cells(self.validation.problem, self.count, checked_base(self.solver), self.teacher)
        found = list(itertools.islice(every, max(2, shares[0] // step)))
        affordable = (n for n in FIRST_LOOK if n <= self.given and n * (screen_cost(found) + OPENED) <= shares[0])
        few = next(affordable, 1)
        ranked = self._looked(found, few)
        ranked = self._looked(ranked[: max(2, shares[1] // (step * more))], more) + ranked
        last = ranked[: max(2, min(LAST_LOOK, shares[2] // (step * (self.tuned + self.validation.count))))]
        if not any(cell.untuned for cell in last):
            last.append(next(cell for cell in ranked if cell.untuned))
        tune = self._looked(last, self.tuned)
        validation = self.validation.errors([cell.linear for cell in tune])
        both = [
            Candidate("untuned", cell, cell.linear, cell.errors, errors)
            for cell, errors in zip(tune, validation, strict=True)
        ]
        both.sort(key=lambda one: float(loss(np.append(one.tune, one.validation), self.objective)))
        untuned = [one for one in both if one.cell.untuned][:RIVALS]
        bases: list[Candidate] = []
        for one in both:
            if len(bases) < KEPT and all(one.cell.base.solver != other.cell.base.solver for other in bases):
                bases.append(one)
        kept = {"untuned": untuned, "bases": bases}
        return {"cells": len(found), **{kind: [one.to_dict() for one in own] for kind, own in kept.items()}}

    def _looked(self, found: list[Cell], count: int) -> list[Cell]:
        """The cells ranked by the first `count` pairs."""
        pairs = self.first(count)
        pairs.purse.spend(OPENED * count)
        return screen(found, pairs, self.objective, self.stages.report)

    def _stages_of(self, number: int, base: Candidate) -> Iterator[Candidate]:
        """What is made of a base: its grid tuned, its weights row by row, and all of it from the better of these."""

        def stage(name: str, make: Callable[[], Candidate]) -> Candidate:
            known = self.stages.value(self._name(f"{name} {number}"), lambda: make().to_dict())
            return Candidate.from_dict(self.validation.problem, known)

        grid = stage("grid", lambda: self._grid(base))
        yield grid
        if not self.weights:
            return
        begun, step = grid, self.count - 1
        rows_cost = self.given * (OPENED + step) + step * (self.tuned + self.validation.count)
        if rows_cost <= self.validation.purse.left:
            rows = stage("rows", lambda: self._rows(grid))
            yield rows
            begun = min(grid, rows, key=self._validated)
        yield stage("joint", lambda: self._joint(begun))

    def _grid(self, begun: Candidate) -> Candidate:
        family = grid_family(begun.cell.base, self.count - 1, self.difference)
        start = Best(begun.lams, begun.linear, begun.tune, begun.validation)
        best = self._descent(family).improve(start, GRID_STEPS)
        return Candidate("grid", begun.cell, best.table, best.tune, best.validation)

    def _rows(self, grid: Candidate) -> Candidate:
        """Fitted on all pairs, as a roll-out of them is all that it costs."""
        given = self.first(self.given)
        given.purse.spend(OPENED * self.given)
        linear = fit_rows(grid.linear, given, self.teacher)
        tune, validation = (pairs.errors([linear])[0] for pairs in (self.first(self.tuned), self.validation))
        return Candidate("rows", grid.cell, linear, tune, validation)

    def _joint(self, begun: Candidate) -> Candidate:
        """From `begun` at the strongest ridge, then on from where each came."""
        family = joint_family(begun.cell.base, self.count, self.difference)
        values = np.append(begun.lams, changes(begun.linear, begun.cell.base))
        descent = self._descent(family)
        best = Best(values, begun.linear, begun.tune, begun.validation)
        for ridge in RIDGES:
            best = descent.improve(best, JOINT_STEPS, ridge)
        return Candidate("joint", begun.cell, best.table, best.tune, best.validation)

    def _descent(self, family: Family) -> Descent:
        return Descent(family, self.first(self.tuned), self.validation, self.objective, self.stages.report)
