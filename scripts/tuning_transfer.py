"""What a bundled model's tuned tables do on the other one: the same steps at the same log-SNRs.

    python scripts/tuning_transfer.py benchmarks/tuning/results.json --draw 4 --out benchmarks/tuning/transfer.md

The presets that ship, beside the best untuned cell of the model that they are carried to, on its own three fresh sets
of that draw in results.json, which `tune_bundled.py` and `tuning_report.py` made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tune_bundled import SETS, Asked, Bench, Measured, rms

from fastsample.bench.report import markdown_table
from fastsample.demo.bundled import MODELS
from fastsample.schedules import NoiseSchedule
from fastsample.tables.preset import read_preset
from fastsample.tuning.linear import Linear, linear_of, with_sums
from fastsample.tuning.problem import Problem

FRESH = SETS[1:]


def main(
    found: Annotated[Path, typer.Argument(help="What tuning_report.py wrote.")],
    out: Annotated[Path, typer.Option(help="The table, as Markdown.")] = Path("benchmarks/tuning/transfer.md"),
    guidance: Annotated[str, typer.Option(help="Guidance scales, comma-separated.")] = "1,3",
    draw: Annotated[int, typer.Option(help="That of the sets.")] = 4,
    batch: Annotated[int, typer.Option(help="Images evaluated at once.")] = 2048,
    device: Annotated[str, typer.Option()] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Write the ratio of each tuned table to the other model's best untuned cell, on each of its fresh sets."""
    torch.backends.cudnn.allow_tf32 = False
    results: list[dict[str, Any]] = [one for one in json.loads(found.read_text()) if one["draw"] == draw]
    asked = Asked(
        found.parent,
        None,
        prompts=64,
        fresh=16,
        budget=0,
        objective="rms",
        solver=None,
        draw=draw,
        batch=batch,
        device=device,
    )
    benches = {name: Bench(name, asked) for name in MODELS}
    untuned = {(one["model"], one["guidance"], one["evaluations"]): one["sets"] for one in results}
    rows = []
    for there, here in (MODELS, tuple(reversed(MODELS))):
        preset = read_preset(there)
        schedule, bench = benches[there].target.schedule, benches[here]
        for scale in map(float, guidance.split(",")):
            measured = Measured(bench, scale)
            for entry in preset.entries:
                beside = untuned.get((here, scale, entry.evaluations))
                if entry.guidance != scale or entry.stage == "untuned" or beside is None:
                    continue
                table = carried(linear_of(entry.table), schedule, bench.target.problem(whole=False))
                ratios = [] if table is None else ratios_of(measured, table, beside)
                mean = f"{np.exp(np.mean(np.log(ratios))):.2f}" if ratios else "outside its grids"
                rows.append([here, f"{scale:g}, {entry.evaluations}", mean, ", ".join(f"{r:.2f}" for r in ratios)])
                print(rows[-1], flush=True)
            measured.close()
    head = ["carried to", "guidance, evaluations", "ratio to its best untuned", "on A, B, C"]
    out.write_text("# Tuned tables on the other bundled model\n\n" + markdown_table(head, rows) + "\n")


def ratios_of(measured: Measured, table: Linear, untuned: dict[str, Any]) -> list[float]:
    """The errors of a table over those of the best untuned cell, on each fresh set."""
    errors = measured.by_set(measured.of(table)[0])
    return [rms(errors[name]) / untuned[name]["untuned"] for name in FRESH]


def carried(linear: Linear, own: NoiseSchedule, problem: Problem) -> Linear | None:
    """The steps of `linear`, tuned on the noise schedule `own`, at the same log-SNRs of `problem`, if it has them.

    In x / alpha a step depends on log-SNRs alone; the first one goes from wherever the noise begins.
    """
    inner = linear.nodes[1:-1]
    lams = [node.lam for node in inner]
    if lams and not (problem.first.lam < lams[0] and lams[-1] <= problem.cleanest):
        return None
    nodes = problem.nodes(lams, [own.node_of(node.time).lam for node in inner])
    scale = [new.alpha / old.alpha for new, old in zip(nodes[1:], linear.nodes[1:], strict=True)]
    return with_sums(Linear(nodes, linear.weights * np.array(scale)[:, None]))


if __name__ == "__main__":
    typer.run(main)
