"""`fastsample solvers`: what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def solvers(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the solvers (name, order, options) and the time grids."""
    from fastsample.schedules import GRIDS
    from fastsample.solvers import available

    found = available()
    if as_json:
        rows = [
            {
                "name": solver.name,
                "order": solver.claimed_order(),
                "evaluations_per_step": len(solver.stages) + 1,
                "stochastic": solver.stochastic,
                "options": solver.options,
                "summary": solver.summary,
                "references": solver.references,
            }
            for solver in found.values()
        ]
        print(json.dumps({"solvers": rows, "grids": list(GRIDS)}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="solvers")
    for name in ("name", "order", "calls a step", "noise", "options", "what it is"):
        table.add_column(name)
    for solver in found.values():
        options = ", ".join(f"{key}={value}" for key, value in solver.options.items())
        noise = "yes" if solver.stochastic else ""
        calls = str(len(solver.stages) + 1)
        table.add_row(solver.name, str(solver.claimed_order()), calls, noise, options, solver.summary)
    console = Console()
    console.print(table)
    console.print(f"grids: {', '.join(GRIDS)}")
