"""How every plot looks: peers grey, ours in colour, names at the lines' ends, plain decimals.

    with style.applied():
        figure, (axis,) = style.panels(1)
        style.lines(axis, {"DDIM": (steps, errors), "diffusers DDIM": (steps, others)})

At most :data:`MOST` lines of a panel have a name and a colour; what else there is stands behind them in light grey,
without a name.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from fastsample.bench.report import is_peer

MOST = 8
"""Named lines a panel."""
INK, GRID, OTHERS = "#24292f", "#d8dee4", "#c9d1d9"
RECOMMENDED = "#d1242f"
OURS = ("#0969da", "#1a7f37", "#bf6a02", "#8250df", "#0f9aa8", "#bf3989", "#6a8f1f")
"""Read apart by people who do not see red and green alike, on white and on black."""
PEERS = ("#57606a", "#7d8590", "#9aa4ae")
DASHES = ("-", "--", ":")
WIDTH = 8.3
"""Inches; a page shows 100 pixels of each, so that 9 points are read as 12 pixels."""
RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.size": 9.5,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "image.interpolation": "nearest",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "savefig.bbox": "tight",
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "svg.hashsalt": "fastsample",
    "text.color": INK,
    "text.parse_math": False,  # prompts and names hold what they hold
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """In the block, or the function, what is drawn and saved looks so."""
    with matplotlib.rc_context(RC):
        yield


def use() -> None:
    """From here on, as for a notebook."""
    matplotlib.rcParams.update(RC)


def panels(count: int, *, height: float = 3.4, named: float = 0.32) -> tuple[Figure, list[Axes]]:
    """A figure of panels below each other, each `height` inches, with the share `named` of its width for names."""
    figure = Figure(figsize=(WIDTH, height * count))
    axes = figure.subplots(count, 1, squeeze=False)[:, 0]
    whole, around = height * count, 0.85  # inches between two panels, for a title and an axis' name
    inner = height - around
    figure.subplots_adjust(
        left=0.09, right=1 - named, bottom=0.5 / whole, top=1 - (around - 0.5) / whole, hspace=around / inner
    )
    return figure, list(axes)


def line(index: int, *, peer: bool = False, recommended: bool = False) -> dict[str, Any]:
    """How a line is drawn: the `index`-th of diffusers', or of ours."""
    if recommended:
        return {"color": RECOMMENDED, "linewidth": 2.8, "marker": "o", "zorder": 5}
    if peer:
        return {"color": PEERS[index % 3], "linestyle": DASHES[1:][index % 2], "marker": "s", "zorder": 3}
    return {"color": OURS[index % len(OURS)], "linestyle": DASHES[index // len(OURS) % 3], "marker": "o", "zorder": 4}


def other() -> dict[str, Any]:
    """How a line without a name is drawn."""
    return {"color": OTHERS, "linewidth": 0.8, "alpha": 0.7, "zorder": 1}


def colours(arms: Sequence[str], *, keep: str = "") -> dict[str, str]:
    """The colours of labels: diffusers' grey, the recommended one's own, the rest in turn."""
    ours = [arm for arm in arms if not is_peer(arm) and arm != keep]
    found = {arm: OURS[index % len(OURS)] for index, arm in enumerate(ours)}
    return {arm: RECOMMENDED if arm == keep else found.get(arm, PEERS[0]) for arm in arms}


def decimals(axis: Axes, which: str = "y") -> None:
    """A logarithmic axis whose ticks are plain decimals: 1, 2 and 5 of a power of ten, or the powers alone."""
    own = axis.yaxis if which == "y" else axis.xaxis
    low, high = sorted(axis.get_ylim() if which == "y" else axis.get_xlim())
    own.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 500 else (1.0,), numticks=20))
    own.set_major_formatter(FuncFormatter(lambda value, _: decimal(value)))
    own.set_minor_locator(NullLocator())
    own.set_minor_formatter(NullFormatter())


def decimal(value: float) -> str:
    """A number without an exponent: 0.0005, 20."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")


def counts(axis: Axes, values: Sequence[float]) -> None:
    """A logarithmic horizontal axis with a tick at each of `values` that has room."""
    axis.set_xscale("log")
    low, high = math.log(min(values)), math.log(max(values))
    shown: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not shown or math.log(shown[-1] / value) > (0.02 + 0.015 * len(decimal(shown[-1]))) * (high - low):
            shown.append(value)
    axis.set_xticks(shown, [decimal(value) for value in shown])
    axis.xaxis.set_minor_locator(NullLocator())


def spread_out(wanted: Sequence[float], heights: Sequence[float], low: float, high: float) -> list[float]:
    """Places for boxes of these heights, none over another, in their order and within [low, high] where they fit.

    The least squares change of the `wanted` places: isotonic regression once the heights before each are taken off.
    """
    if not len(wanted):
        return []
    order, tall = np.argsort(wanted, kind="stable"), np.asarray(heights, dtype=float)
    own = tall[order]
    before = np.concatenate([[0.0], np.cumsum((own[1:] + own[:-1]) / 2)])
    free = isotonic_regression(np.asarray(wanted, dtype=float)[order] - before).x
    first, last = low + own[0] / 2, high - own[-1] / 2 - before[-1]
    placed = np.clip(free, first, max(first, last)) + before
    return list(placed[np.argsort(order, kind="stable")])


def name_lines(axis: Axes, ends: Sequence[tuple[float, float, str, Any]], *, width: int = 32) -> None:
    """Names right of the panel for lines that end at (x, y, name, colour), none over another, each led to its line.

    To be called once the axis has its limits and scales.
    """
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    to_pixels, size = axis.transData.transform, float(matplotlib.rcParams["font.size"])
    texts = [wrapped(name, width) for _, _, name, _ in ends]
    low, high = axis.transAxes.transform([[0, 0], [0, 1]])[:, 1]
    lines = sum(1 + text.count("\n") for text in texts)
    size = min(size, max(6.0, ((high - low) * 72 / figure.dpi - 3 * len(texts)) / (1.25 * max(lines, 1))))
    tall = [(1.25 * size * (1 + text.count("\n")) + 3) * figure.dpi / 72 for text in texts]
    wanted = [float(np.clip(to_pixels((x, y))[1], low, high)) for x, y, _, _ in ends]
    for (x, y, _, colour), text, at in zip(ends, texts, spread_out(wanted, tall, low, high), strict=True):
        share = (at - low) / (high - low)
        axis.annotate(
            text,
            (x, y),
            (1.06, share),
            xycoords="data",
            textcoords="axes fraction",
            color=colour,
            fontsize=size,
            va="center",
            ha="left",
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.6},
                **{"relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 4},
            },
        )


def lines(axis: Axes, points: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, log: str = "xy") -> None:
    """A line (x, y) a name, which stands at its end; `log`: the logarithmic axes. What has no place is left out.

    For plots of a few named lines, as notebooks have: a benchmark's are drawn by :mod:`fastsample.bench.plots`.
    """
    found, ends = colours(list(points)), []
    for index, (name, (x, y)) in enumerate(points.items()):
        known = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b) and (b > 0 or "y" not in log)]
        if known:
            looks = line(index, peer=is_peer(name)) | {"color": found[name]}
            axis.plot(*zip(*known, strict=True), **looks)
            ends.append((*known[-1], name, found[name]))
    if "x" in log:
        counts(axis, sorted({a for x, _ in points.values() for a in x}))
    if "y" in log:
        axis.set_yscale("log")
        decimals(axis)
    name_lines(axis, ends)


def name_points(
    axis: Axes, points: Sequence[tuple[float, float, str, Any]], others: Sequence[tuple[float, float]]
) -> None:
    """Names beside points (x, y, name, colour), each at the first of eight places where it is over nothing."""
    figure = axis.get_figure()
    assert isinstance(figure, Figure)
    scale, size = figure.dpi / 72, float(matplotlib.rcParams["font.size"]) * 0.92
    dots = axis.transData.transform([point[:2] for point in points] + list(others))
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in dots]
    frame = axis.get_window_extent()
    for (x, y), (*_, name, colour) in zip(dots, points, strict=False):
        text = wrapped(name, 26)
        wide = 0.56 * size * scale * max(map(len, text.split("\n")))
        tall = 1.25 * size * scale * (1 + text.count("\n"))
        best: tuple[float, tuple[float, float, float, float]] | None = None
        for reach in (8.0, 16.0, 28.0):
            for right, up in ((1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 0), (-1, 1), (-1, -1)):
                left = x + scale * reach * right - wide * (1 - right) / 2
                low = y + scale * reach * up - tall * (1 - up) / 2
                box = (left, low, left + wide, low + tall)
                over = sum(_overlap(box, one) for one in taken)
                over += wide * tall - _overlap(box, (frame.x0, frame.y0, frame.x1 + 130 * scale, frame.y1))
                if best is None or over < best[0] - 1e-9:
                    best = over, box
        assert best is not None
        taken.append(best[1])
        left, low, right_end, high = best[1]
        near = (min(max(x, left), right_end), min(max(y, low), high))
        if math.dist(near, (x, y)) > 12 * scale:
            back = axis.transData.inverted().transform
            axis.plot(*zip(back((x, y)), back(near), strict=True), color=colour, lw=0.6, alpha=0.7, zorder=2)
        place = axis.transData.inverted().transform((left, low))
        axis.text(*place, text, color=colour, fontsize=size, va="bottom", ha="left", zorder=6)


def between(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a line on logarithmic axes, which names are to keep clear of."""
    logs = np.log(np.array(line))
    parts = [np.linspace(one, two, 9)[1:-1] for one, two in itertools.pairwise(logs)]
    return [(float(x), float(y)) for x, y in np.exp(np.concatenate(parts))] if parts else []


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0.0) * max(tall, 0.0)


def note(figure: Figure, text: str) -> None:
    """What a reader has to know, in small letters under everything."""
    figure.text(0.02, -0.01, wrapped(text, 125), fontsize=7.5, color=PEERS[0], va="top", ha="left")


def wrapped(text: str, width: int) -> str:
    """Each line in lines of that many letters, broken at spaces where there are some."""
    lines = (textwrap.wrap(line, width, break_on_hyphens=False) or [""] for line in text.splitlines())
    return "\n".join(part for line in lines for part in line)


def save(figure: Figure, path: Path) -> None:
    """As PNG, or what the suffix says."""
    figure.savefig(path)
