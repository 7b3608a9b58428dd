"""`fastsample doctor`: versions, devices, what works offline."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Report versions, devices, backends and the state of the bundled model."""
    from fastsample.cli.engines import doctor as engine  # torch and diffusers: not for --help

    engine.report(as_json)
