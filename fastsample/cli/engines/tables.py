"""Tables on standard output, whole: nothing in them is cut to a narrow terminal, or taken for markup."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def show(table: Table) -> None:
    """Print `table` as wide as the terminal, or as it needs to be."""
    unbounded = Console(width=1000, markup=False)
    needed = Measurement.get(unbounded, unbounded.options, table).maximum
    Console(width=max(Console().width, needed), markup=False).print(table)
