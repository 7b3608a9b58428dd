"""The table and the plots of what `tune_bundled.py` measured.

    python scripts/tuning_report.py results/tuning/results.json --out benchmarks/tuning

Writes results.md, errors.png (error against evaluations, tuned, untuned and diffusers') and grids.png (the log-SNRs
that were found, beside those of the best untuned cell), and copies results.json beside them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from matplotlib.figure import Figure

from fastsample.bench.report import markdown_table

FRESH = ("A", "B", "C")
PEERS = {
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "UniPCMultistepScheduler": "UniPC",
    "DEISMultistepScheduler": "DEIS",
}
Result = dict[str, Any]


def main(
    results: Annotated[Path, typer.Argument(help="What tune_bundled.py wrote.")],
    out: Annotated[Path, typer.Option(help="The folder of the table and the plots.")] = Path("benchmarks/tuning"),
    device: Annotated[str, typer.Option(help="What it ran on, for the table's heading.")] = "H100",
) -> None:
    """Write results.md, errors.png, grids.png and results.json."""
    found: list[Result] = sorted(
        json.loads(results.read_text()), key=lambda one: (one["model"], one["guidance"], one["evaluations"])
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "results.md").write_text(written(found, device))
    errors(found, out / "errors.png")
    grids(found, out / "grids.png")


def written(found: Sequence[Result], device: str) -> str:
    """The tables as Markdown."""
    cells = max(one["cells"] for one in found)
    parts = [
        "# Tuned tables of the bundled models",
        f"Made by `scripts/tuning_report.py` of what `scripts/tune_bundled.py` measured ({device}, float32 "
        "without TF32). Error: root mean square distance to 200 steps from the same noise, relative to "
        "their spread. A, B and C are three sets of held-out prompts with two seeds each that nothing was "
        f"chosen on; the ratio is to the best of up to {cells} untuned cells (every deterministic solver of "
        "ours on every grid), chosen anew on each set itself, which favours the untuned. *Choice* is the "
        "set that decided what ships. The first table has the geometric mean over A, B and C; *untuned* "
        "where `tune` itself kept the untuned: the rows further down show what its own pick among the cells "
        "that it could screen was then worth. Tuned tables that do not ship are here too: in their place "
        "the best untuned cell on *choice* does. In brackets: by seed. *Draw*: cells of another number were "
        "measured on other prompts and seeds.",
    ]
    for model in dict.fromkeys(one["model"] for one in found):
        own = [one for one in found if one["model"] == model]
        parts += [f"## {model}", ratios(own), *sentences(own), details(own), peers(own)]
    return "\n\n".join(parts) + "\n"


def ratios(own: Sequence[Result]) -> str:
    """The geometric mean over the fresh sets by guidance and evaluations."""
    counts = sorted({one["evaluations"] for one in own})
    rows = []
    for guidance in sorted({one["guidance"] for one in own}):
        row = [f"{guidance:g}"]
        for count in counts:
            cell = next((o for o in own if (o["guidance"], o["evaluations"]) == (guidance, count)), None)
            row.append("-" if cell is None else shown(cell))
        rows.append(row)
    return markdown_table(["guidance", *(f"{count} evaluations" for count in counts)], rows)


def shown(cell: Result) -> str:
    """A cell of the first table: its ratio where there is a tuned table."""
    if cell["stage"] == "untuned":
        return "untuned"
    return f"{mean_ratio(cell):.2f}{'' if tuned(cell) else ' (not shipped)'}"


def sentences(own: Sequence[Result]) -> list[str]:
    """What a tuned table is as good as, in words."""
    lines = []
    for one in filter(tuned, own):
        steps = one["as good as DPM++ 2M of"]
        good = f"as good as {steps} steps" if steps else "better than 50 steps"
        lines.append(
            f"- Guidance {one['guidance']:g}: the tuned {one['evaluations']} steps are {good} of diffusers' DPM++ 2M."
        )
    return ["\n".join(lines)] if lines else []


def details(own: Sequence[Result]) -> str:
    """Each cell: base and stage, the ratio on each set with its spread, prompts right."""
    rows = []
    for one in own:
        sets = one["sets"]
        ratio = [
            f"{sets[name]['ratio']:.2f} ({', '.join(f'{r:.2f}' for r in sets[name]['ratio by seed'])})"
            for name in ("choice", *FRESH)
        ]
        before, after = (np.mean([sets[name]["prompts right"][k] for name in FRESH]) for k in (0, 1))
        base = f"{one['base']}, {one['stage']}"
        rows.append(
            [
                f"{one['guidance']:g}, {one['evaluations']}",
                base,
                *ratio,
                f"{np.mean([sets[name]['median ratio'] for name in FRESH]):.2f}",
                f"{before:.0%} {after:.0%}",
                str(one["calls"]),
                str(one["draw"]),
                "yes" if tuned(one) else "no",
            ]
        )
    head = [
        "guidance, evaluations",
        "table",
        "choice",
        *FRESH,
        "median",
        "right: untuned, tuned",
        "calls",
        "draw",
        "ships",
    ]
    return markdown_table(head, rows)


def peers(own: Sequence[Result]) -> str:
    """Errors on the fresh sets, beside diffusers'."""
    rows = []
    for one in own:
        sets = [one["sets"][name] for name in FRESH]
        values = [pooled([s["tuned"] for s in sets]), pooled([s["untuned"] for s in sets])]
        values += [pooled([s["diffusers"][peer] for s in sets]) for peer in PEERS]
        untuned = ", ".join(dict.fromkeys(s["best untuned"] for s in sets))
        rows.append([f"{one['guidance']:g}, {one['evaluations']}", *(f"{value:.4f}" for value in values), untuned])
    return markdown_table(
        ["guidance, evaluations", "tuned", "best untuned", *PEERS.values(), "best untuned on A, B, C"], rows
    )


def errors(found: Sequence[Result], path: Path) -> None:
    """Error against evaluations, a panel for each model and guidance; hollow points do not ship."""
    models, guidances = (sorted({one[key] for one in found}) for key in ("model", "guidance"))
    figure = Figure(figsize=(4.2 * len(guidances), 3.9 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), len(guidances), squeeze=False)
    for (row, model), (column, guidance) in itertools.product(enumerate(models), enumerate(guidances)):
        axis = axes[row][column]
        own = [one for one in found if (one["model"], one["guidance"]) == (model, guidance)]
        for grey, (peer, label) in zip(("0.3", "0.5", "0.7"), PEERS.items(), strict=True):
            values = [pooled([one["sets"][name]["diffusers"][peer] for name in FRESH]) for one in own]
            axis.plot(
                [one["evaluations"] for one in own], values, "s--", color=grey, ms=4, label=f"diffusers {label}"
            )
        for key, label, colour in (("untuned", "best untuned of all cells", "C0"), ("tuned", "tuned", "C3")):
            shown = [one for one in own if key == "untuned" or one["stage"] != "untuned"]
            if not shown:
                continue
            counts = [one["evaluations"] for one in shown]
            sets = np.array([[one["sets"][name][key] for name in FRESH] for one in shown])
            middle = np.sqrt((sets**2).mean(1))
            spread = [middle - sets.min(1), sets.max(1) - middle]
            axis.errorbar(counts, middle, spread, color=colour, marker="o", ms=5, capsize=2, label=label)
            if key == "tuned":
                fill = [colour if tuned(one) else "white" for one in shown]
                axis.scatter(counts, middle, c=fill, edgecolors=colour, zorder=3)
        axis.set(title=f"{model}, guidance {guidance:g}", xlabel="evaluations", yscale="log")
        axis.set_xticks(sorted({one["evaluations"] for one in own}))
        axis.grid(alpha=0.3)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.supylabel("error to the converged latents")
    figure.savefig(path, dpi=110)


def grids(found: Sequence[Result], path: Path) -> None:
    """The log-SNRs of the evaluations, tuned and of the best untuned cell, a row for each tuned table."""
    found = [one for one in found if one["stage"] != "untuned"]
    models = list(dict.fromkeys(one["model"] for one in found))
    figure = Figure(figsize=(5.5 * len(models), 0.4 * len(found) / len(models) + 1.4))
    axes = figure.subplots(1, len(models), squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        own = [one for one in found if one["model"] == model]
        for row, one in enumerate(own):
            for key, style, shift in (("untuned", "C0|", 0.15), ("tuned", "C3o", -0.15)):
                nodes = one["nodes"][key]
                axis.plot(nodes, [row + shift] * len(nodes), style, ms=5, label=key if row == 0 else None)
        axis.set_yticks(range(len(own)), [f"{one['guidance']:g}, {one['evaluations']}" for one in own])
        axis.set(title=model, xlabel="log(alpha / sigma) of the evaluations after the first")
        axis.grid(alpha=0.3, axis="x")
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[0].set_ylabel("guidance, evaluations")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def tuned(one: Result) -> bool:
    """Whether the tuned table ships."""
    return bool(one["ships"] != "untuned")


def mean_ratio(one: Result) -> float:
    """The geometric mean over the fresh sets."""
    return float(np.exp(np.mean([np.log(one["sets"][name]["ratio"]) for name in FRESH])))


def pooled(values: Sequence[float]) -> float:
    """The root mean square of errors on sets of the same size."""
    return float(np.sqrt(np.mean(np.square(values))))


if __name__ == "__main__":
    typer.run(main)
