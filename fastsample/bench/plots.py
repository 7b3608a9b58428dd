"""Pictures: error against cost, and images by sampler and steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from fastsample.bench import decoding_report
from fastsample.bench.record import Result
from fastsample.bench.report import Summary, foremost, is_peer

GREYS = ("0.25", "0.5", "0.7")


def pareto(rows: Sequence[Summary], path: Path, metric: str = "latent_rms", *, keep: str = "") -> None:
    """`metric` against NFE, one panel per guidance scale; diverged points are left out.

    The samplers of :func:`fastsample.bench.report.foremost`, `keep` drawn thick, diffusers' in greys.
    """
    guidances = sorted({row.guidance for row in rows})
    figure = Figure(figsize=(5.6 * len(guidances), 5.6))
    axes = figure.subplots(1, len(guidances), squeeze=False)
    colours = {arm: f"C{index}" for index, arm in enumerate(a for a in _arms(rows) if not is_peer(a) and a != keep)}
    greys = {arm: GREYS[index % 3] for index, arm in enumerate(a for a in _arms(rows) if is_peer(a))}
    styles = colours | greys | {keep: "black"}
    for axis, guidance in zip(axes[0], guidances, strict=True):
        panel = [row for row in rows if row.guidance == guidance]
        shown = foremost(panel, keep=keep)
        for arm in shown:
            own = sorted((row for row in panel if row.arm == arm), key=lambda row: row.nfe)
            points = [(row.nfe, *value) for row in own if (value := row.metrics.get(metric)) is not None]
            if not points:
                continue
            x, y, spread = np.array(points).T
            style = {"ls": "--" if is_peer(arm) else "-", "marker": "s" if is_peer(arm) else "o", "ms": 4}
            width = 2.5 if arm == keep else 1.3
            label = f"{arm} (recommended)" if arm == keep else arm
            axis.errorbar(x, y, spread, label=label, color=styles[arm], lw=width, capsize=2, **style)
        axis.set(
            title=f"guidance {guidance:g}", xlabel="model evaluations an image (NFE)", yscale="log", xscale="log"
        )
        ticks = sorted({row.nfe for row in panel if row.arm in shown})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), frameon=False)
    axes[0][0].set_ylabel("RMS error to the converged solution")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _arms(rows: Sequence[Summary]) -> list[str]:
    return list(dict.fromkeys(row.arm for row in rows))


def decoding_pareto(results: Sequence[Result], path: Path) -> None:
    """Shares of right texts and of right answers against forwards; a line joins the results that none beats."""
    figure = Figure(figsize=(13, 4.6))
    axes = figure.subplots(1, 2, sharey=True, sharex=True)
    for axis, metric in zip(axes, ("valid", "answers"), strict=True):
        for index, result in enumerate(results):
            style = {"color": f"C{index % 10}", "marker": "os^Dv"[index // 10 % 5]}
            axis.plot(result["forwards"], result[metric], ls="", ms=6, label=result["method"], **style)
        best = decoding_report.frontier([(result["forwards"], result[metric]) for result in results])
        axis.plot(*zip(*best, strict=True), color="grey", lw=0.8, zorder=0)
        axis.set(title=decoding_report.COLUMNS[metric] + " right", xlabel="forwards a sequence", xscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("share of the problems")
    axes[1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(path, dpi=110, bbox_inches="tight")


def image_grid(images: dict[str, Tensor], path: Path, prompts: Sequence[str]) -> None:
    """One row per sampler, one column per prompt; images [n, 3, H, W] in [0, 1]."""
    shape = (len(images), len(prompts))
    figure = Figure(figsize=(1.3 * shape[1] + 2, 1.25 * shape[0] + 0.6))
    axes = figure.subplots(*shape, squeeze=False)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    for axis, prompt in zip(axes[0], prompts, strict=True):
        axis.set_title(_wrapped(prompt), fontsize=5)
    for row, (label, batch) in zip(axes, images.items(), strict=True):
        for axis, image in zip(row, batch, strict=False):
            axis.imshow(np.nan_to_num(image.permute(1, 2, 0).numpy()), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label.replace("diffusers ", "diffusers\n"), fontsize=7, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def sweeps(errors: dict[str, list[float]], path: Path, title: str) -> None:
    """RMS error to the sequential result, relative to its spread, against the sweep; one line per label."""
    figure = Figure(figsize=(6.5, 4.2))
    axis = figure.subplots()
    for index, (label, values) in enumerate(errors.items()):
        axis.plot(range(1, len(values) + 1), values, marker="o", ms=4, label=label, color=f"C{index % 10}")
    axis.set(title=title, xlabel="sweep", ylabel="RMS error to the sequential result", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def strips(images: dict[str, Tensor], path: Path) -> None:
    """One row per label: the images [n, 3, H, W] in [0, 1] of its sweeps, the sequential one last."""
    columns = max(len(row) for row in images.values())
    figure = Figure(figsize=(1.1 * columns + 2, 1.15 * len(images) + 0.4))
    axes = figure.subplots(len(images), columns, squeeze=False)
    figure.subplots_adjust(wspace=0.05, hspace=0.25)
    for row, (label, shown) in zip(axes, images.items(), strict=True):
        pictures = [*shown[:-1], *[None] * (columns - len(shown)), shown[-1]]
        for sweep, (axis, picture) in enumerate(zip(row, pictures, strict=True), 1):
            axis.axis("off")
            if picture is not None:
                axis.imshow(np.nan_to_num(picture.permute(1, 2, 0).numpy()), interpolation="nearest")
                axis.set_title("sequential" if sweep == columns else f"sweep {sweep}", fontsize=6)
        row[0].text(-0.1, 0.5, label, transform=row[0].transAxes, fontsize=7, ha="right", va="center")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _wrapped(text: str, width: int = 18) -> str:
    return "\n".join(textwrap.wrap(text, width))
