"""Decoding results as tables, and which of them no other one beats."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from fastsample.bench.record import Result
from fastsample.bench.report import markdown_table

COLUMNS = {
    "answers": "answers",
    "valid": "whole texts",
    "forwards": "forwards",
    "fewer": "fewer",
    "tokens_per_forward": "tokens a forward",
    "seconds_1": "ms, batch 1",
    "seconds_8": "ms, batch 8",
}


def cells(result: Result, full: Result) -> list[str]:
    """A row of the tables; `full` is what forwards are compared with.

    Shares in % with their standard error, forwards with their deviation over problems, milliseconds a sequence with
    their deviation over batches.
    """

    def share(value: float) -> str:
        return f"{value:.1%} ± {math.sqrt(value * (1 - value) / result['problems']):.1%}"

    def milliseconds(name: str) -> str:
        return f"{1e3 * result[name]:.0f} ± {1e3 * result[name + '_deviation']:.0f}"

    return [
        share(result["answers"]),
        share(result["valid"]),
        f"{result['forwards']:.1f} ± {result['forwards_deviation']:.1f}",
        f"{full['forwards'] / result['forwards']:.1f}x",
        f"{result['tokens_per_forward']:.2f}",
        milliseconds("seconds_1"),
        milliseconds("seconds_8"),
    ]


def rich_table(results: Sequence[Result]) -> Table:
    """For the terminal; forwards are compared with the first result's."""
    table = Table(title=f"{results[0]['problems']} problems; fewer forwards than {results[0]['method']}")
    table.add_column("rule", no_wrap=True)
    for title in COLUMNS.values():
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result["method"], *cells(result, results[0]))
    return table


def markdown(results: Sequence[Result]) -> str:
    """A GitHub table; forwards are compared with the first result's."""
    rows = [[f"`{result['method']}`", *cells(result, results[0])] for result in results]
    return markdown_table(["rule", *COLUMNS.values()], rows)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, quality) points whose quality no cheaper point reaches, ordered by cost."""
    kept: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((cost, quality))
    return kept
