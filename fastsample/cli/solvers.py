"""`fastsample solvers`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer


def solvers(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the solvers with their properties, and the time grids.

    Order is that of convergence; predictions, what its history holds (any model's output is converted to it);
    sigma = 0, how a step onto clean data is made.
    """
    from fastsample.cli.engines import solvers as engine  # NumPy and the solvers: not for --help

    engine.report(as_json)
