"""Solvers and grids as they are, and on grids read off the teacher, ranked by what they make of some pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.grids import evaluation_times
from fastsample.solvers.registry import get_solver
from fastsample.tuning.geometry import GEOMETRIC
from fastsample.tuning.grid import Base
from fastsample.tuning.linear import Linear
from fastsample.tuning.pairs import Pairs, loss
from fastsample.tuning.problem import Problem
from fastsample.tuning.teacher import Teacher

Array = NDArray[np.float64]

SOLVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("dpmpp-2m", {}),
    ("unipc", {}),
    ("deis", {}),
    ("ghvb", {"order": 2}),
    ("ghvb", {"order": 4}),
    ("ipndm", {}),
    ("hb-dpmpp-2m", {}),
    ("ddim", {}),
    ("hb", {}),
    ("ghvb", {"order": 1, "weights": "variable"}),
)
GRIDS = (
    "quadratic",
    "shifted-quadratic",
    "log-snr",
    "trailing",
    "karras",
    "beta",
    "normal",
    "linspace",
    "ays-sd15",
    "beta-time",
)
"""The best on the bundled models first: where the budget does not hold all, these are looked at."""


@dataclass(frozen=True, eq=False)
class Cell:
    """A solver on a grid: `lams` are the inner log-SNRs, `errors` [P] what it made of the screened pairs."""

    base: Base
    grid: str
    lams: Array
    linear: Linear
    errors: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def label(self) -> str:
        """What tables call it."""
        options = f"({self.base.written})" if self.base.options else ""
        return f"{self.base.solver}{options} {self.grid}"

    @property
    def untuned(self) -> bool:
        """Whether the grid is one by name, not one read off the teacher."""
        return self.grid not in GEOMETRIC


def checked_base(solver: str | None) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The solvers that are screened: all, or `solver` alone. ValueError where it cannot be tuned."""
    if solver is None:
        return SOLVERS
    found = get_solver(solver)
    if found.stochastic:
        raise ValueError(
            f"solver = {solver!r} draws noise, which no tuned table does: use 'dpmpp-2m', or None for all"
        )
    if found.stages:
        raise ValueError(
            f"solver = {solver!r} has stages, which lie at fixed places: use 'dpmpp-2m', or None for all"
        )
    known = tuple((name, options) for name, options in SOLVERS if name == solver)
    return known or ((solver, {}),)


def cells(
    problem: Problem,
    count: int,
    solvers: tuple[tuple[str, dict[str, Any]], ...] = SOLVERS,
    grids: tuple[str, ...] = GRIDS,
    teacher: Teacher | None = None,
) -> list[Cell]:
    """All that have a table of `count` evaluations from the problem's first node; grids alike are one."""
    laid: dict[str, Array] = {}
    for name in grids:
        lams = named_lams(problem, name, count)
        if lams is not None and not any(np.allclose(lams, other, atol=1e-3) for other in laid.values()):
            laid[name] = lams
    if teacher is not None:  # early, as a small budget looks at the first alone
        read_off = {name: place(teacher, count) for name, place in GEOMETRIC.items()}
        first = dict(list(laid.items())[:2])
        laid = first | read_off | laid
    found = []
    for (solver, options), (name, lams) in itertools.product(solvers, laid.items()):
        base = Base(problem, solver, options)
        try:
            found.append(Cell(base, name, lams, base.at(lams)))
        except ValueError:  # the solver has no table there
            continue
    return found


def named_lams(problem: Problem, name: str, count: int) -> Array | None:
    """The inner log-SNRs of a grid by name; None where it does not begin at the problem's first node."""
    schedule = problem.schedule
    try:
        if problem.named is not None:
            nodes = tuple(problem.named(name, count))[:-1]
        else:
            nodes = schedule.nodes_at(evaluation_times(name, schedule, count))
    except ValueError:  # made for other models or counts
        return None
    lams = np.array([node.lam for node in nodes[1:]])
    if len(nodes) != count or abs(nodes[0].sigma - problem.first.sigma) > 1e-3:
        return None
    bounds = [problem.first.lam, *lams, problem.final.lam]
    return lams if all(before < after - 1e-6 for before, after in itertools.pairwise(bounds)) else None


def screen(found: list[Cell], pairs: Pairs, objective: str, report: Callable[[str], None]) -> list[Cell]:
    """The cells with what each made of `pairs`, the best first."""
    errors = pairs.errors([cell.linear for cell in found])
    ranked = np.argsort(loss(errors, objective), kind="stable")
    result = [Cell(found[i].base, found[i].grid, found[i].lams, found[i].linear, errors[i]) for i in ranked]
    for cell in result[:3]:
        report(f"{cell.label}: {loss(cell.errors, objective):.4f}")
    return result
