"""Expected speed-ups of parallel sampling for 1 to 8 devices, on paper: a Markdown page from measured rounds.

    python scripts/estimate_parallel.py --results benchmarks/parallel_cpu/results.jsonl --out estimates.md

Rounds come from a record of `fastsample bench --parallel`; what a call costs by its rows from `--rows`, a record of
`scripts/gpu --parts rows`, or from assumed devices that evaluate 1, 2 or 4 rows in the time of one.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from fastsample.bench.estimate import RowCost, expected_speedup
from fastsample.bench.report import markdown_table

HEADER = """# Expected speed-ups of parallel sampling, on paper

Made by `scripts/estimate_parallel.py` from measured rounds and rows a sweep. Columns: what a device is assumed to be,
and how many of them share a sweep. A saturated device takes twice as long for two rows; "4 free" evaluates up to four
in the time of one. Gathering a sweep's outputs is taken as 0.05 calls of one row, unless said otherwise. Numbers
below 1 are slower.

"""
DEVICES = (1, 2, 4, 8)
FREE_ROWS = (1, 2, 4)


def measured_costs(path: Path) -> dict[str, RowCost]:
    """The row cost of each model in a record of `scripts/gpu --parts rows`."""
    seconds: dict[str, dict[int, float]] = defaultdict(dict)
    found = json.loads(path.read_text())
    for record in found["records"]:
        if "rows" in record:
            seconds[f"{record['model']}, {found['about']['device']}"][record["rows"]] = record["ms"] / 1e3
    return {name: RowCost(by_rows) for name, by_rows in seconds.items()}


def main(
    results: Annotated[Path, typer.Option(help="results.jsonl of fastsample bench --parallel.")],
    out: Annotated[Path, typer.Option(help="The Markdown page.")],
    rows: Annotated[Path | None, typer.Option(help="benchmarks/gpu/rows.json; default: assumed devices.")] = None,
    gather: Annotated[float, typer.Option(help="Cost of gathering a sweep's outputs, in calls of one row.")] = 0.05,
) -> None:
    """Write the page."""
    assumed = {f"{free} free" if free > 1 else "saturated": RowCost.saturating(free) for free in FREE_ROWS}
    costs = measured_costs(rows) if rows else assumed
    found: dict[tuple[str, float, int, str], list[tuple[float, float]]] = defaultdict(list)
    for result in map(json.loads, results.read_text().splitlines()):
        if result.get("parallel"):
            evaluations = result["nfe"] / (2 if result["guidance"] > 1 else 1)
            key = result["solver"], result["guidance"], result["steps"], result["parallel"]
            found[key].append((result["rounds"], (evaluations - 1) / result["sweeps"]))
    header = ["solver", "guidance", "steps", "iteration, window, tolerance", "rounds", "rows a sweep"]
    header += [f"{name}: {count}" for name in costs for count in DEVICES]
    lines = []
    for (solver, guidance, steps, label), values in found.items():
        rounds, size = (statistics.mean(column) for column in zip(*values, strict=True))
        speedups = [
            expected_speedup(steps, rounds, math.ceil(size), cost, devices=count, gather=gather * cost(1))
            for cost in costs.values()
            for count in DEVICES
        ]
        numbers = [f"{value:.1f}" for value in (rounds, size, *speedups)]
        lines.append([solver, f"{guidance:g}", str(steps), label, *numbers])
    out.write_text(HEADER + markdown_table(header, lines))


if __name__ == "__main__":
    typer.run(main)
