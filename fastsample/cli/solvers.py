"""`fastsample solvers`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from fastsample.cli.command import check_switches


def solvers(
    ctx: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="One solver, or a part of its name: all that is known of it.")
    ] = None,
    details: Annotated[bool, typer.Option("--details", help="All that is known of each solver and grid.")] = False,
    names: Annotated[bool, typer.Option("--names", help="What other programs call them.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the solvers, one a line, and the time grids.

    Example: fastsample solvers dpmpp-2m
    """
    check_switches(ctx, excludes={"names": ("name", "details"), "as_json": ("details", "names")})
    from fastsample.cli.engines import solvers as engine  # NumPy and the solvers: not for --help

    engine.report(name, details=details, names=names, as_json=as_json)
