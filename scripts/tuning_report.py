"""The table and the plots of what `tune_bundled.py` measured, and the presets that ship.

    python scripts/tuning_report.py results/tuning results/again --out benchmarks/tuning --presets fastsample/presets

Joins the runs in these folders, after what --out and --presets hold already: of several attempts at a cell the one
that ships with the least ratio on the set that decides, or the last one where none does. Writes results.json,
results.md, errors.png (error against evaluations, tuned, untuned and diffusers'), grids.png (the log-SNRs that were
found, beside those of the best untuned cell), and the presets.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from fastsample.bench import style
from fastsample.bench.report import markdown_table
from fastsample.tables.preset import Entry, Preset

FRESH = ("A", "B", "C")
PEERS = {
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "UniPCMultistepScheduler": "UniPC",
    "DEISMultistepScheduler": "DEIS",
}
Result = dict[str, Any]
Attempt = tuple[Result, Entry]
"""What was measured of a cell, and what ships."""


def main(
    runs: Annotated[list[Path], typer.Argument(help="The folders that tune_bundled.py wrote.", exists=True)],
    out: Annotated[Path, typer.Option(help="The folder of the table and the plots.")] = Path("benchmarks/tuning"),
    presets: Annotated[Path, typer.Option(help="The folder of the presets.")] = Path("presets"),
) -> None:
    """Write results.json, results.md, errors.png and grids.png, and the presets of all models."""
    before = attempts(out / "results.json", presets, "") if (out / "results.json").is_file() else []
    made = [attempt for run in runs for attempt in attempts(run / "results.json", run, "preset-")]
    kept = joined([*before, *made])
    found = [result for result, _ in kept]
    out.mkdir(parents=True, exist_ok=True)
    presets.mkdir(parents=True, exist_ok=True)
    for model in dict.fromkeys(one["model"] for one in found):
        newest = [*(run / f"preset-{model}.json" for run in reversed(runs)), presets / f"{model}.json"]
        preset = Preset.from_json(next(path for path in newest if path.is_file()).read_text())
        entries = tuple(entry for result, entry in kept if result["model"] == model)
        dataclasses.replace(preset, entries=entries).save(presets / f"{model}.json")
    (out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "results.md").write_text(written(found))
    errors(found, out / "errors.png")
    grids(found, out / "grids.png")


def attempts(results: Path, folder: Path, prefix: str) -> list[Attempt]:
    """All cells of a run: its results, and the entries of its presets."""
    found: list[Result] = json.loads(results.read_text())
    presets = {
        model: Preset.from_json((folder / f"{prefix}{model}.json").read_text())
        for model in {one["model"] for one in found}
    }
    entries = {
        (model, entry.guidance, entry.evaluations): entry
        for model, preset in presets.items()
        for entry in preset.entries
    }
    return [(one, entries[key_of(one)]) for one in found]


def joined(found: Iterable[Attempt]) -> list[Attempt]:
    """By cell the attempt that ships with the least ratio on the set that decides, the last one where none does."""
    best: dict[tuple[str, float, int], Attempt] = {}
    for attempt in found:
        key = key_of(attempt[0])
        if key not in best or not tuned(best[key][0]) or (tuned(attempt[0]) and choice(attempt) <= choice(best[key])):
            best[key] = attempt
    return [best[key] for key in sorted(best)]


def choice(attempt: Attempt) -> float:
    """The ratio on the set that decides."""
    return float(attempt[0]["sets"]["choice"]["ratio"])


def key_of(one: Result) -> tuple[str, float, int]:
    """The cell of a result."""
    return one["model"], one["guidance"], one["evaluations"]


def written(found: Sequence[Result]) -> str:
    """The tables as Markdown."""
    cells = max(one["cells"] for one in found)
    parts = [
        "# Tuned tables of the bundled models",
        f"Made by `scripts/tuning_report.py` of what `scripts/tune_bundled.py` measured (float32 "
        "without TF32). Error: root mean square distance to 200 steps from the same noise, relative to "
        "their spread. A, B and C are three sets of held-out prompts with two seeds each that nothing was "
        f"chosen on; the ratio is to the best of up to {cells} untuned cells (every deterministic solver of "
        "ours on every grid), chosen anew on each set itself, which favours the untuned. *Choice* is the "
        "set that decided what ships. The first table has the geometric mean over A, B and C; *untuned* "
        "where `tune` itself kept the untuned: the rows further down show what its own pick among the cells "
        "that it could screen was then worth. Tuned tables that do not ship are here too: in their place "
        "the best untuned cell on *choice* does. In brackets: by seed. *Draw*: cells of another number were "
        "measured on other prompts and seeds. Of several attempts at a cell this is the one that ships with "
        "the least ratio on *choice*, or the last one where none does.",
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
        base = ", ".join([one["base"], one["stage"], *(["huber"] if one["objective"] == "huber" else [])])
        rows.append(
            [
                f"{one['guidance']:g}, {one['evaluations']}",
                base,
                *ratio,
                f"{np.mean([sets[name]['median ratio'] for name in FRESH]):.2f}",
                f"{before:.0%} {after:.0%}",
                str(one["calls"]),
                str(one["draw"]),
                one["machine"],
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
        "machine",
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


@style.applied()
def errors(found: Sequence[Result], path: Path) -> None:
    """Error against evaluations, a panel a model and guidance with several of these; hollow points do not ship."""
    groups = itertools.groupby(found, key=lambda one: (one["model"], one["guidance"]))
    every = [(case, list(group)) for case, group in groups]
    cases = [(case, own) for case, own in every if len(own) > 1]
    figure, axes = style.panels(len(cases), height=2.9)
    for axis, ((model, guidance), own) in zip(axes, cases, strict=True):
        ends = []
        for index, (peer, label) in enumerate(PEERS.items()):
            values = [pooled([one["sets"][name]["diffusers"][peer] for name in FRESH]) for one in own]
            looks = style.line(index, peer=True)
            axis.plot([one["evaluations"] for one in own], values, **looks)
            ends.append((own[-1]["evaluations"], values[-1], f"diffusers {label}", looks["color"]))
        for key, label in (("untuned", "best untuned of all cells"), ("tuned", "tuned")):
            shown = [one for one in own if key == "untuned" or one["stage"] != "untuned"]
            if not shown:
                continue
            counts = [one["evaluations"] for one in shown]
            sets = np.array([[one["sets"][name][key] for name in FRESH] for one in shown])
            middle = np.sqrt((sets**2).mean(1))
            looks = style.line(0, recommended=key == "tuned")
            axis.errorbar(counts, middle, [middle - sets.min(1), sets.max(1) - middle], capsize=2, **looks)
            if key == "tuned":
                fill = [looks["color"] if tuned(one) else "white" for one in shown]
                axis.scatter(counts, middle, c=fill, edgecolors=looks["color"], zorder=6)
            ends.append((counts[-1], middle[-1], label, looks["color"]))
        axis.set(
            title=f"{model}, guidance {guidance:g}",
            yscale="log",
            ylabel="error to the converged\nlatents (lower is better)",
        )
        style.counts(axis, [one["evaluations"] for one in own])
        style.decimals(axis)
        style.name_lines(axis, ends)
    axes[-1].set_xlabel("evaluations (a guided one counts once)")
    held_back = any(one["stage"] != "untuned" and not tuned(one) for one in found)
    style.note(
        figure,
        "Error bars: the least and the largest of three sets of held-out prompts. "
        + "Hollow points do not ship. " * held_back
        + "Guidance scales with a single number of evaluations are in the table." * (cases != every),
    )
    style.save(figure, path)


@style.applied()
def grids(found: Sequence[Result], path: Path) -> None:
    """The log-SNRs of the evaluations, tuned and of the best untuned cell, a row for each tuned table."""
    found = [one for one in found if one["stage"] != "untuned"]
    models = list(dict.fromkeys(one["model"] for one in found))
    figure, axes = style.panels(len(models), height=0.3 * len(found) / len(models) + 1.5, named=0.2)
    for axis, model in zip(axes, models, strict=True):
        own, ends = [one for one in found if one["model"] == model], []
        for key, marker, shift, colour in (
            ("untuned", "|", 0.15, style.OURS[0]),
            ("tuned", "o", -0.15, style.RECOMMENDED),
        ):
            for row, one in enumerate(own):
                nodes = one["nodes"][key]
                axis.plot(
                    nodes, [row + shift] * len(nodes), marker, color=colour, ms=6, mew=1.6 if marker == "|" else 0
                )
            ends.append((nodes[-1], row + shift, key, colour))
        axis.set_yticks(range(len(own)), [f"{one['guidance']:g}, {one['evaluations']}" for one in own])
        axis.set(title=model, ylabel="guidance, evaluations")
        axis.grid(visible=False, axis="y")
        style.name_lines(axis, ends)
    axes[-1].set_xlabel("log(alpha / sigma) of the evaluations after the first")
    style.save(figure, path)


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
