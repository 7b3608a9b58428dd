"""Decoding results as tables, and as a picture: validity against forwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

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


def pareto(results: Sequence[Result], path: Path) -> None:
    """Whole texts right, and answers right, against forwards; those that no other result beats are joined."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.6), sharey=True, sharex=True)
    for axis, metric in zip(axes, ("valid", "answers"), strict=True):
        for index, result in enumerate(results):
            style = {"color": f"C{index % 10}", "marker": "os^Dv"[index // 10 % 5]}
            axis.plot(result["forwards"], result[metric], ls="", ms=6, label=result["method"], **style)
        best = frontier([(result["forwards"], result[metric]) for result in results])
        axis.plot(*zip(*best, strict=True), color="grey", lw=0.8, zorder=0)
        axis.set(title=COLUMNS[metric] + " right", xlabel="forwards a sequence", xscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("share of the problems")
    axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, quality), those that no cheaper one reaches in quality, by cost."""
    kept: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or quality > kept[-1][1]:
            kept.append((cost, quality))
    return kept
