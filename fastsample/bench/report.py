"""Results as tables: mean and spread over seeds."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from fastsample.bench.record import Result

METRICS = {
    "latent_rms": ("latent RMS", 3),
    "pixel_psnr": ("PSNR dB", 1),
    "attributes": ("attributes", 3),
    "prompts": ("prompts", 3),
    "frechet": ("Frechet", 2),
    "seconds": ("seconds", 2),
}


@dataclass(frozen=True)
class Summary:
    """One row: an arm at steps and guidance, over seeds; a metric is (mean, spread), None where it diverged."""

    arm: str
    steps: int
    guidance: float
    nfe: float
    seeds: int
    finite: bool
    metrics: dict[str, tuple[float, float] | None]

    def text(self, metric: str, *, spread: bool = True) -> str:
        """`mean ± spread`, or the mean alone; "diverged" where a run was not finite."""
        value = self.metrics.get(metric)
        if value is None:
            return "diverged" if metric in ("latent_rms", "pixel_psnr", "frechet") else "-"
        digits = METRICS[metric][1]
        return f"{value[0]:.{digits}f}" + (f" ± {value[1]:.{digits}f}" if spread and self.seeds > 1 else "")


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Group results over seeds; the spread is the standard deviation over them."""
    groups: dict[tuple[float, int, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result["guidance"], result["steps"], result["arm"]), []).append(result)
    rows = []
    for (guidance, steps, arm), own in groups.items():
        metrics: dict[str, tuple[float, float] | None] = {}
        for metric in METRICS:
            values = [result[metric] for result in own if metric in result]
            if values:
                numbers = [value for value in values if value is not None]
                whole = len(numbers) == len(values)
                spread = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
                metrics[metric] = (statistics.mean(numbers), spread) if whole else None
        nfe, finite = own[0]["nfe"], all(result["finite"] for result in own)
        rows.append(Summary(arm, steps, guidance, nfe, len(own), finite, metrics))
    return rows


def _columns(rows: Sequence[Summary]) -> list[str]:
    return [metric for metric in METRICS if any(metric in row.metrics for row in rows)]


def _cells(rows: Sequence[Summary], spread_of: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and body; the spread is given of the metrics in `spread_of`."""
    metrics = _columns(rows)
    header = ["guidance", "steps", "NFE", "sampler", *(METRICS[metric][0] for metric in metrics)]
    body = [
        [
            f"{row.guidance:g}",
            str(row.steps),
            f"{row.nfe:g}",
            row.arm,
            *(row.text(m, spread=m in spread_of) for m in metrics),
        ]
        for row in rows
    ]
    return header, body


def rich_table(rows: Sequence[Summary], title: str) -> Table:
    """For the terminal: the spread of the error alone, so that a row fits on a line."""
    header, body = _cells(rows, ["latent_rms"])
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 3 else "right", no_wrap=True)
    previous = None
    for cells in body:
        if previous is not None and cells[:2] != previous:
            table.add_section()
        table.add_row(*cells)
        previous = cells[:2]
    return table


def markdown(rows: Sequence[Summary]) -> str:
    """A GitHub table, with every spread."""
    header, body = _cells(rows, list(METRICS))
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def csv_text(rows: Sequence[Summary]) -> str:
    """Numbers without rounding: mean and spread of each metric in columns of their own."""
    metrics = _columns(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = ["sampler", "steps", "guidance", "nfe", "seeds", "finite"]
    writer.writerow(header + [f"{metric}{part}" for metric in metrics for part in ("", "_spread")])
    for row in rows:
        cells: list[object] = [row.arm, row.steps, row.guidance, row.nfe, row.seeds, row.finite]
        for metric in metrics:
            cells += row.metrics.get(metric) or ("", "")
        writer.writerow(cells)
    return out.getvalue()
