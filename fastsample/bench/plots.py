"""Error against cost: what a benchmark's results look like."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastsample.bench import decoding_report, style
from fastsample.bench.naming import rule_name
from fastsample.bench.record import Result
from fastsample.bench.report import Summary, foremost, is_peer, sequential

ERROR = "error to the converged solution\n(lower is better)"
SEQUENTIAL = "error to the sequential result\n(lower is better)"
DECODED = {"valid": "texts, as a whole", "answers": "answers"}
DECODING_RULE = (
    "Error bars: standard error over problems. Named and joined are the ways to decode that none beats at their "
    f"number of forwards (at most {style.MOST - 1}, from the right), and the first one; light grey are the others."
)
ROUNDS_RULE = "Error bars: standard deviation over seeds. Points of a line: its tolerances, the loosest first."
COSTS = {"nfe": "model evaluations an image", "rounds": "rounds: model calls one after the other"}
RULE = (
    f"Error bars: standard deviation over seeds. Named are at most {style.MOST} a panel: the recommended setting, "
    "the three of diffusers' (grey) and those of ours (in colour) with the least error, by its geometric mean over "
    "steps."
)


@style.applied()
def pareto(rows: Sequence[Summary], path: Path, metric: str = "latent_rms", *, keep: str = "") -> None:
    """`metric` against model evaluations, a panel a guidance scale; `keep` is drawn thick."""
    figure = errors(rows, metric, keep=keep)
    style.note(figure, rule_in_words(rows, keep=keep))
    style.save(figure, path)


def errors(rows: Sequence[Summary], metric: str = "latent_rms", *, keep: str = "") -> Figure:
    """The panels of :func:`pareto`; parallel iterations have those of :func:`rounds`."""
    rows = sequential(rows)
    guidances = sorted({row.guidance for row in rows})
    figure, axes = style.panels(len(guidances))
    for axis, guidance in zip(axes, guidances, strict=True):
        error_panel(axis, [row for row in rows if row.guidance == guidance], metric, keep=keep)
        axis.set_title(f"guidance {guidance:g}" + (" (none)" if guidance == 1 else ""))
    axes[-1].set_xlabel(COSTS["nfe"])
    return figure


def rule_in_words(rows: Sequence[Summary], *, keep: str = "") -> str:
    """Which samplers have a name, and how many have none."""
    rows = sequential(rows)
    scales = {row.guidance for row in rows}
    panels = [[row for row in rows if row.guidance == scale] for scale in scales]
    most = max(len({row.arm for row in panel}) - len(foremost(panel, keep=keep)) for panel in panels)
    return f"{RULE} The light lines are the {most} others." if most else RULE


def error_panel(axis: Axes, rows: Sequence[Summary], metric: str, *, keep: str = "", cost: str = "nfe") -> None:
    """One panel: an arm is a line with its name where :func:`fastsample.bench.report.foremost` has it.

    `cost` is what stands on the horizontal axis: "nfe", or a metric. Diverged points are left out.
    """
    shown = foremost(rows, keep=keep)
    peers = [arm for arm in shown if is_peer(arm)]
    ours = [arm for arm in shown if not is_peer(arm) and arm != keep]
    ends, ticks = [], set()
    for arm in dict.fromkeys(row.arm for row in rows):
        own = [row for row in rows if row.arm == arm]
        points = sorted((of, *value) for row in own if (of := row.cost(cost)) and (value := row.metrics.get(metric)))
        points = [point for point in points if point[1] > 0]  # of 0 there is no logarithm
        if not points:
            continue
        x, y, spread = np.array(points).T
        if arm not in shown:
            axis.plot(x, y, **style.other())
            continue
        index = 0 if arm == keep else (peers if arm in peers else ours).index(arm)
        looks = style.line(index, peer=arm in peers, recommended=arm == keep)
        axis.errorbar(x, y, np.minimum(spread, 0.9 * y), capsize=2, elinewidth=0.9, **looks)
        name = f"recommended: {own[0].title}" if arm == keep else own[0].title
        ends.append((x[-1], y[-1], name, looks["color"]))
        ticks |= {*x}
    axis.set(yscale="log", ylabel=ERROR)
    if ends:
        named = [value for line in axis.containers for value in line.lines[0].get_ydata()]
        axis.set_ylim(min(named) / 1.3, max(named) * 1.3)
        style.counts(axis, sorted(ticks))
    style.decimals(axis)
    style.name_lines(axis, ends)


@style.applied()
def rounds(rows: Sequence[Summary], path: Path, title: str) -> None:
    """What parallel iterations trade: error to the sequential result over rounds, and over evaluations."""
    figure = rounds_panels(rows, title)
    style.note(figure, ROUNDS_RULE)
    style.save(figure, path)


def rounds_panels(rows: Sequence[Summary], title: str) -> Figure:
    """The panels of :func:`rounds`: a line is an iteration with its tolerances as points."""
    groups: dict[str, list[Summary]] = {}
    for row in rows:
        if row.metrics.get("sequential_rms") and row.metrics.get("rounds"):
            groups.setdefault(row.title.partition(", tolerance")[0], []).append(row)
    heads = {name.partition(", ")[0] for name in groups}
    figure, axes = style.panels(2, height=3.6)
    for axis, cost in zip(axes, ("rounds", "nfe"), strict=True):
        ends = []
        for index, (name, own) in enumerate(itertools.islice(groups.items(), style.MOST)):
            points = sorted((row.cost(cost), *(row.metrics["sequential_rms"] or ())) for row in own)
            points = [point for point in points if point[1] > 0]  # of 0 there is no logarithm
            if not points:
                continue
            x, y, spread = np.array(points).T
            looks = style.line(index)
            axis.errorbar(x, y, np.minimum(spread, 0.9 * y), capsize=2, elinewidth=0.9, **looks)
            ends.append((x[-1], y[-1], name.partition(", ")[2] if len(heads) == 1 else name, looks["color"]))
        axis.set(yscale="log", xlabel=COSTS[cost], ylabel=SEQUENTIAL)
        style.decimals(axis)
        style.name_lines(axis, ends)
    axes[0].set_title(f"{heads.pop()}, {title}" if len(heads) == 1 else title)
    return figure


@style.applied()
def decoding_pareto(results: Sequence[Result], path: Path) -> None:
    """Shares of wrong texts and of wrong answers against forwards."""
    figure = decoding(results)
    style.note(figure, DECODING_RULE)
    style.save(figure, path)


def decoding(results: Sequence[Result]) -> Figure:
    """The panels of :func:`decoding_pareto`: a line joins the ways to decode that none beats, which have names."""
    figure, axes = style.panels(2, height=4.0, named=0.2)
    for axis, metric in zip(axes, ("valid", "answers"), strict=True):
        best = decoding_report.frontier([(result["forwards"], result[metric]) for result in results])
        best = best[1 - style.MOST :]
        named: dict[tuple[float, float], tuple[float, float, str, str]] = {}
        others = []
        for index, result in enumerate(results):
            at, count = (result["forwards"], result[metric]), result["problems"]
            wrong, error = max(1 - at[1], 0.5 / count), (at[1] * (1 - at[1]) / count) ** 0.5
            colour = style.OURS[0] if at in best else style.PEERS[0] if index == 0 else style.OTHERS
            axis.errorbar(
                *(at[0], wrong, min(error, 0.9 * wrong)),
                fmt="o",
                color=colour,
                elinewidth=0.9,
                zorder=2 + (at in best),
            )
            if index == 0 or at in best:
                named.setdefault(at, (at[0], wrong, rule_name(result["method"]), colour))
            else:
                others.append((at[0], wrong))
        line = [named[at][:2] for at in best]
        axis.plot(*zip(*line, strict=True), color=style.OURS[0], lw=1.0, zorder=2)
        axis.set(title=f"wrong {DECODED[metric]}", ylabel="share of the problems\n(lower is better)", yscale="log")
        style.counts(axis, [count for count in (1, 2, 5, 10, 20, 50, 100, 200, 500) if count <= 1.1 * _most(results)])
        axis.set_xlim(0.8, 1.3 * _most(results))
        style.decimals(axis)
        style.name_points(axis, list(named.values()), [*others, *style.between(line)])
    axes[-1].set_xlabel("forwards a text (fewer is faster)")
    return figure


def _most(results: Sequence[Result]) -> float:
    return float(max(result["forwards"] for result in results))


@style.applied()
def sweeps(errors: dict[str, list[float]], path: Path, title: str) -> None:
    """RMS error to the sequential result, relative to its spread, against the sweep; one line per label."""
    figure, (axis,) = style.panels(1, height=4.2, named=0.26)
    ends = []
    for index, (label, values) in enumerate(errors.items()):
        looks = style.line(index)
        points = [(sweep, value) for sweep, value in enumerate(values, 1) if 0 < value < math.inf]
        if points:
            axis.plot(*zip(*points, strict=True), **looks)
            ends.append((*points[-1], label, looks["color"]))
    axis.set(title=title, xlabel="sweep: one round of model calls at once", yscale="log")
    axis.set_ylabel(SEQUENTIAL)
    style.decimals(axis)
    style.name_lines(axis, ends)
    style.save(figure, path)
