"""Results as tables: mean and spread over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from fastsample.bench.naming import plain_name
from fastsample.bench.record import Result
from fastsample.wording import counted

METRICS = {
    "latent_rms": ("latent RMS", 3),
    "pixel_psnr": ("PSNR dB", 1),
    "attributes": ("attributes", 3),
    "prompts": ("prompts", 3),
    "frechet": ("Frechet", 2),
    "ungated_rms": ("to ungated", 3),
    "gmacs": ("GMACs", 1),
    "sequential_rms": ("to sequential", 4),
    "rounds": ("rounds", 1),
    "dropped": ("dropped", 1),
    "saved_by_guidance": ("saved: guidance", 3),
    "saved_by_caching": ("saved: caching", 3),
    "seconds": ("seconds", 2),
}


@dataclass(frozen=True)
class Summary:
    """One row: an arm at steps and guidance, over seeds; a metric is (mean, spread), None where it diverged.

    `name` is what a reader calls the arm.
    """

    arm: str
    steps: int
    guidance: float
    nfe: float
    seeds: int
    finite: bool
    metrics: dict[str, tuple[float, float] | None]
    name: str = ""

    @property
    def title(self) -> str:
        """The arm's name, its label where it has none."""
        return self.name or self.arm

    def cost(self, of: str = "nfe") -> float | None:
        """Model evaluations an image, or the mean of a metric, as "rounds"."""
        if of == "nfe":
            return self.nfe
        return self.mean(of) if self.metrics.get(of) else None

    def mean(self, metric: str) -> float:
        """Of a metric, over seeds; infinite where it diverged or was not measured."""
        value = self.metrics.get(metric)
        return value[0] if value else math.inf

    def text(self, metric: str, *, spread: bool = True) -> str:
        """`mean ± spread`, or the mean alone; "diverged" where a run was not finite."""
        value = self.metrics.get(metric)
        if value is None:
            return "diverged" if metric in ("latent_rms", "pixel_psnr", "frechet") else "-"
        digits = METRICS[metric][1]
        if metric.endswith("rms") and 0 < value[0] < 10.0 ** (1 - digits):
            digits = 1 - math.floor(math.log10(value[0]))  # two that say something
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
        rows.append(Summary(arm, steps, guidance, nfe, len(own), finite, metrics, plain_name(own[0])))
    return rows


def enough_steps(rows: Iterable[Summary], error: float = 0.1) -> int:
    """The fewest steps at which some sampler's error is below `error`; the most where none's is."""
    rows = list(rows)
    return min((row.steps for row in rows if row.mean("latent_rms") < error), default=max(row.steps for row in rows))


def foremost(rows: Sequence[Summary], *, keep: str = "", most: int = 8) -> list[str]:
    """The samplers to show of one guidance scale, in their order: `keep`, three of diffusers', and the best of ours.

    Those with the least error, by its geometric mean over steps: at most `most`. Those that were not run at every
    number of steps come last.
    """
    counts = len({row.nfe for row in rows})

    def mean(arm: str) -> tuple[int, float]:
        errors = [max(row.mean("latent_rms"), 1e-12) for row in rows if row.arm == arm]
        return counts - len(errors), sum(map(math.log, errors)) / len(errors)

    ranked = sorted(_distinct(rows, "arm"), key=lambda arm: (arm != keep, *mean(arm)))
    peers = [arm for arm in ranked if is_peer(arm)]
    ours = [arm for arm in ranked if not is_peer(arm)][: most - min(len(peers), 3)]
    chosen = {*ours, *peers[: most - len(ours)]}
    return [arm for arm in _distinct(rows, "arm") if arm in chosen]


def sequential(rows: Sequence[Summary]) -> list[Summary]:
    """Those that make a step after the other; all where none does."""
    return [row for row in rows if "sequential_rms" not in row.metrics] or list(rows)


def is_peer(arm: str) -> bool:
    """Whether a sampler, by its label, is one of diffusers'."""
    return arm.startswith("diffusers ")


def _columns(rows: Sequence[Summary]) -> list[str]:
    return [metric for metric in METRICS if any(metric in row.metrics for row in rows)]


def rich_table(rows: Sequence[Summary], title: str) -> Table:
    """For the terminal: every metric, but only the error with its spread, so that a row fits on a line."""
    metrics = _columns(rows)
    table = Table(title=title)
    for name in ("guidance", "steps", "NFE", "sampler", *(METRICS[metric][0] for metric in metrics)):
        table.add_column(name, justify="left" if name == "sampler" else "right", no_wrap=True)
    previous = None
    for row in rows:
        if previous is not None and (row.guidance, row.steps) != previous:
            table.add_section()
        previous = (row.guidance, row.steps)
        values = (row.text(metric, spread=metric == "latent_rms") for metric in metrics)
        table.add_row(f"{row.guidance:g}", str(row.steps), f"{row.nfe:g}", row.arm, *values)
    return table


def markdown(rows: Sequence[Summary]) -> str:
    """GitHub tables, one per guidance scale: samplers by steps, the error with its spread, the least in bold.

    In brackets the share of images in which every attribute of the prompt was found, where that was judged.
    """
    return "\n".join(
        _by_steps([row for row in rows if row.guidance == scale]) for scale in _distinct(rows, "guidance")
    )


def _by_steps(rows: Sequence[Summary]) -> str:
    """The table of one guidance scale."""
    steps, arms = _distinct(rows, "steps"), _distinct(rows, "arm")
    found = {(row.arm, row.steps): row for row in rows}
    least = {count: min(row.mean("latent_rms") for row in rows if row.steps == count) for count in steps}
    header = [f"guidance {rows[0].guidance:g}", *(counted(count, "step") for count in steps)]
    body = [[arm, *(_cell(found.get((arm, count)), least[count]) for count in steps)] for arm in arms]
    return markdown_table(header, body)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A GitHub table."""
    lines = [header, ["---"] * len(header), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def _cell(row: Summary | None, least: float) -> str:
    if row is None:
        return ""
    error, judged = row.text("latent_rms"), row.metrics.get("prompts")
    share = f" ({judged[0]:.0%})" if judged else ""
    return (f"**{error}**" if row.mean("latent_rms") == least else error) + share


def _distinct(rows: Sequence[Summary], name: str) -> list[Any]:
    """The values of a field in order of appearance."""
    return list(dict.fromkeys(getattr(row, name) for row in rows))


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
