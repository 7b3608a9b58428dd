"""The committed pictures, drawn again.

    python scripts/pictures.py              # plots of what benchmarks/ records: seconds, no model
    python scripts/pictures.py images flow parallel        # pictures by the bundled models: minutes on a CPU

Written where they belong, under benchmarks/. Those of docs/ have scripts of their own: scripts/draw_steps.py.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated

import benchmark_decoding
import benchmark_flow_model as flow
import diffusers
import numpy as np
import typer
from flow_model import QuickPipeline

from fastsample.bench import grids, plots, report, style, sweeps
from fastsample.bench.accelerations import Parallel
from fastsample.bench.cases import Arm, recommended_arm
from fastsample.bench.record import Record, Result
from fastsample.bench.runner import Bench
from fastsample.demo import bundled
from fastsample.demo.scenes import sample_scenes

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
GUIDANCE = 3.0


def recorded(folder: str) -> list[Result]:
    return [json.loads(line) for line in (BENCHMARKS / folder / "results.jsonl").read_text().splitlines()]


@cache
def text_to_image() -> tuple[list[report.Summary], str]:
    """Solvers and diffusers' on the model's own grid with the recommended setting: of one context, so comparable."""
    best = recommended_arm("vp").label
    added = [result for result in recorded("text_to_image_grids") if result["arm"] == best]
    assert added, f"benchmarks/text_to_image_grids has no {best}"
    return report.summarise([*recorded("text_to_image_cpu"), *added]), best


def flow_results(folder: str = "flow_text_to_image_gpu") -> list[Result]:
    """As `fastsample bench` writes them; "recommended" is the setting for the guidance that was sampled with."""
    found = []
    for result in recorded(folder):
        for part in result["parts"]:
            arm, scale = result["scheduler"], part["guidance"]
            if arm.startswith("recommended") and arm != f"recommended at guidance {scale:g}":
                continue
            evaluations = result["steps"] * (1 if scale == 1 else 2)
            case = {"arm": arm.partition(" at ")[0], "steps": result["steps"], "guidance": scale, "nfe": evaluations}
            found.append({**case, "seed": part["seed"], "finite": True, "latent_rms": flow.rms_of(part)})
    return found


def draw_records() -> None:
    """Everything that needs no model."""
    rows, best = text_to_image()
    plots.pareto(rows, BENCHMARKS / "text_to_image_cpu/pareto.png", keep=best)
    name = f"{recommended_arm('flow', GUIDANCE).title}".partition(", stable")[0]
    rows = report.summarise(flow_results())
    rows = [replace(row, name=f"{name}, shifted-quadratic grid") if row.arm == "recommended" else row for row in rows]
    plots.pareto(rows, BENCHMARKS / "flow_text_to_image_gpu/pareto.png", keep="recommended")
    plots.decoding_pareto(recorded("decoding_cpu"), BENCHMARKS / "decoding_cpu/pareto.png")
    own = [row for row in recorded("parallel_cpu") if (row["steps"], row["guidance"]) == (50, GUIDANCE)]
    own = [row for row in own if row["solver"] == "dpmpp-2m"]
    plots.rounds(report.summarise(own), BENCHMARKS / "parallel_cpu/rounds.png", f"50 steps, guidance {GUIDANCE:g}")
    texts = dict(np.load(BENCHMARKS / "decoding/texts.npz"))
    benchmark_decoding.risk_plot(benchmark_decoding.Kept(texts, "fresh"), BENCHMARKS / "decoding/risk.png")


def bench(count: int) -> Bench:
    """The bundled Stable Diffusion model on held-out prompts; its record is not kept."""
    texts = [scene.caption for scene in sample_scenes(count, seed=7, held_out=True)]
    record = Record(Path(tempfile.mkdtemp()) / "results.jsonl")
    return Bench(bundled.load_pipeline(), texts, record)


def draw_images(guidance: float = 7.5) -> None:
    """The named samplers of the plot at its highest guidance, at the fewest steps that one of them needs there."""
    rows, best = text_to_image()
    panel = [row for row in rows if row.guidance == guidance]
    steps, chosen, runner = report.enough_steps(panel), report.foremost(panel, keep=best), bench(8)
    arms = {arm.label: arm for arm in map(arm_of, [*recorded("text_to_image_cpu"), *recorded("text_to_image_grids")])}
    colours = style.colours(chosen, keep=best)
    shown = [grids.Row("reference: 200 steps of DPM-Solver++ 3M", [*runner.converged_images(guidance, 0)])]
    for label in sorted(chosen, key=lambda label: (label != best, report.is_peer(label))):
        name = f"recommended: {arms[label].title}" if label == best else arms[label].title
        shown.append(grids.Row(name, [*runner.images(arms[label], steps, guidance, 0)], colours[label]))
    title = f"{steps} steps, guidance {guidance:g}, seed 0: named as in the plot of errors"
    grids.image_grid(shown, BENCHMARKS / "text_to_image_cpu/images.png", runner.prompts, title)


def arm_of(result: Result) -> Arm:
    """The arm of a record's line."""
    return Arm(result["solver"], tuple(result["options"].items()), result["grid"], result["source"] == "diffusers")


def draw_parallel(steps: int = 50) -> None:
    """The image by sweep."""
    names = ("picard", "replay", "anderson", "secant")
    arms = [Arm("dpmpp-2m", parallel=Parallel(name, None, 1e-3)) for name in names]
    for name, write in sweeps.trace(bench(4), arms, steps, GUIDANCE).items():
        write(BENCHMARKS / "parallel_cpu" / name)


def draw_flow(counts: Sequence[int] = (5, 8, 10)) -> None:
    """benchmarks/flow_text_to_image/images.png, as scripts/benchmark_flow_model.py --picture draws it."""
    plain = diffusers.StableDiffusion3Pipeline.from_pretrained(
        bundled.model_path("flow_text_to_image"), local_files_only=True
    )
    texts = [scene.caption for scene in sample_scenes(6, 1000, held_out=True)]
    makes, path = flow.schedulers((), [GUIDANCE]), BENCHMARKS / "flow_text_to_image/images.png"
    flow.draw(QuickPipeline.of(plain), texts, GUIDANCE, counts, makes, path)


DRAWN: dict[str, Callable[[], None]] = {
    "records": draw_records,
    "images": draw_images,
    "flow": draw_flow,
    "parallel": draw_parallel,
}


def main(names: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(DRAWN)}.")] = None) -> None:
    """Draw them."""
    for name in names or ["records"]:
        if name not in DRAWN:
            raise typer.BadParameter(f"{name}: use {', '.join(DRAWN)}")
        DRAWN[name]()
        print(name, flush=True)


if __name__ == "__main__":
    typer.run(main)
