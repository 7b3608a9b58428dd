"""Solvers and grids as they are, and on grids read off the teacher, ranked by what they make of some pairs.

All of them begin: successive halving looks at every cell on one or a few pairs, then at the best of them on more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.grids import GRIDS, evaluation_times
from fastsample.solvers.registry import available, get_solver
from fastsample.tuning.geometry import GEOMETRIC
from fastsample.tuning.grid import Base
from fastsample.tuning.linear import Linear
from fastsample.tuning.pairs import Pairs, loss
from fastsample.tuning.problem import Problem
from fastsample.tuning.rollout import cost
from fastsample.tuning.teacher import Teacher

Array = NDArray[np.float64]
Solvers = Sequence[tuple[str, dict[str, Any]]]

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ghvb": [{"order": order, "weights": weights} for order in (2, 4, 1, 3) for weights in ("fixed", "variable")],
    "unipc": [{"order": 1}, {"order": 2}, {"order": 3}],
    "deis": [{"order": 2}, {"order": 3}],
    "ipndm": [{"order": 2}, {"order": 3}, {"order": 4}],
    "adams": [{"order": 2}, {"order": 3}],
}
"""Options with which a solver is screened, where that is not with its defaults alone."""
FIRST_SOLVERS = ("hb-dpmpp-2m", "unipc", "hb", "ghvb", "dpmpp-2m", "deis", "ddim", "ipndm", "adams")
FIRST_GRIDS = (
    "log-snr",
    "shifted-quadratic",
    "quadratic",
    "ays-sdxl",
    "karras",
    "beta-time",
    "ays-sd15",
    "beta57",
    "trailing",
    "beta",
)
"""The best on the bundled models before all others: where the budget does not hold all, these are looked at."""
TABLES_AT_ONCE = 128


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


def checked_base(solver: str | None) -> Solvers:
    """The solvers that are screened: all, or `solver` alone. ValueError where it cannot be tuned."""
    if solver is None:
        return deterministic()
    found = get_solver(solver)
    if found.stochastic:
        raise ValueError(
            f"solver = {solver!r} draws noise, which no tuned table does: use 'dpmpp-2m', or None for all"
        )
    if found.stages:
        raise ValueError(
            f"solver = {solver!r} has stages, which lie at fixed places: use 'dpmpp-2m', or None for all"
        )
    return [(solver, options) for options in VARIANTS.get(solver, [{}])]


def deterministic() -> Solvers:
    """Every registered solver with one evaluation a step and no noise, and its variants."""
    known = {
        name: solver
        for name, solver in available().items()
        if not solver.stochastic and not solver.stages and not solver.distilled
    }
    ordered = dict.fromkeys((*(name for name in FIRST_SOLVERS if name in known), *known))
    return [(name, options) for name in ordered for options in VARIANTS.get(name, [{}])]


def cells(
    problem: Problem, count: int, solvers: Solvers | None = None, teacher: Teacher | None = None
) -> Iterator[Cell]:
    """All that have a table of `count` evaluations from the problem's first node, grid by grid, the best grids first.

    Grids alike are one, and so are solvers that are the same on a grid. With a `teacher` the grids read off it too.
    """
    laid: dict[str, Array] = {}
    for name in dict.fromkeys((*FIRST_GRIDS, *GRIDS)):
        lams = named_lams(problem, name, count)
        if lams is not None and not any(np.allclose(lams, other, atol=1e-3) for other in laid.values()):
            laid[name] = lams
    if teacher is not None:  # early, as a small budget looks at the first alone
        read_off = {name: place(teacher, count) for name, place in GEOMETRIC.items()}
        first = dict(list(laid.items())[:2])
        laid = first | read_off | laid
    for name, lams in laid.items():
        seen = set()
        for solver, options in deterministic() if solvers is None else solvers:
            base = Base(problem, solver, options)
            try:
                linear = base.at(lams)
            except ValueError:  # the solver has no table there
                continue
            known = np.round(linear.weights, 9).tobytes()
            if known not in seen:
                seen.add(known)
                yield Cell(base, name, lams, linear)


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


def screen(found: Sequence[Cell], pairs: Pairs, objective: str, report: Callable[[str], None]) -> list[Cell]:
    """The cells with what each made of `pairs`, the best first."""
    seen = []
    for part in _parts(found):
        errors = pairs.errors([cell.linear for cell in part], *shared(part))
        seen += [replace(cell, errors=row) for cell, row in zip(part, errors, strict=True)]
    ranked = sorted(seen, key=lambda cell: float(loss(cell.errors, objective)))
    for cell in ranked[:3]:
        report(f"{cell.label}: {loss(cell.errors, objective):.4f} on {pairs.count} pairs")
    return ranked


def screen_cost(found: Sequence[Cell]) -> int:
    """Evaluations of a pair in :func:`screen`."""
    return sum(cost(part[0].linear.count, shared(part)[0]) for part in _parts(found))


def shared(found: Sequence[Cell]) -> tuple[list[int], list[int]]:
    """From which evaluation on each differs from the first cell on its grid, and which that is: see `roll_out`."""
    begins, leaders = [], []
    first: dict[str, int] = {}
    for index, cell in enumerate(found):
        leader = first.setdefault(cell.grid, index)
        own, other = cell.linear.weights, found[leader].linear.weights
        same = [np.allclose(*rows, 0.0, 1e-12) for rows in zip(own, other, strict=True)]
        begins.append(0 if leader == index else 1 + same.index(False))
        leaders.append(leader)
    return begins, leaders


def _parts(found: Sequence[Cell]) -> Iterator[list[Cell]]:
    """The cells, those of a grid together, TABLES_AT_ONCE at a time."""
    by_grid = sorted(found, key=lambda cell: cell.grid)
    return (by_grid[begin : begin + TABLES_AT_ONCE] for begin in range(0, len(by_grid), TABLES_AT_ONCE))
