"""The solvers and the time grids, listed."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from fastsample.schedules import GRIDS
from fastsample.solvers import Solver, available


def report(as_json: bool) -> None:
    """Print them."""
    found = available()
    if as_json:
        rows = [{**properties(solver), "references": solver.references} for solver in found.values()]
        print(json.dumps({"solvers": rows, "grids": list(GRIDS)}, indent=2))
        return
    titles = ("name", "order", "calls a step", "predictions", "noise", "sigma = 0", "flow", "options", "what it is")
    table = Table(*titles, title="solvers")
    for solver in found.values():
        table.add_row(*(_cell(value) for value in properties(solver).values()))
    console = Console()
    console.print(table)
    console.print(f"grids: {', '.join(GRIDS)}")


def properties(solver: Solver) -> dict[str, Any]:
    """What a solver declares, and what follows from its rule."""
    return {
        "name": solver.name,
        "order": solver.claimed_order(),
        "evaluations_per_step": solver.evaluations,
        "predictions": solver.space,
        "stochastic": solver.stochastic,
        "onto_clean": solver.onto_clean,
        "flow": solver.flow,
        "options": solver.options,
        "summary": solver.summary,
    }


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={option}" for key, option in value.items())
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
