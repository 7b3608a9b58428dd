"""The committed pictures, drawn again.

    python scripts/pictures.py              # plots of what benchmarks/ records: seconds, no model
    python scripts/pictures.py hero images flow parallel        # pictures by the bundled models: minutes on a CPU

Written where they belong, under benchmarks/ and docs/.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import benchmark_decoding
import benchmark_flow_model as flow
import diffusers
import numpy as np
import typer
from flow_model import QuickPipeline
from torch import Tensor

from fastsample.bench import grids, plots, report, style, sweeps
from fastsample.bench.accelerations import Parallel
from fastsample.bench.cases import Arm, recommended_arm
from fastsample.bench.metrics import decode
from fastsample.bench.record import Record, Result
from fastsample.bench.runner import Bench
from fastsample.demo import bundled
from fastsample.demo.scenes import sample_scenes
from fastsample.testing import run_scheduler

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


@dataclass(frozen=True)
class FlowModel:
    """The bundled flow-matching model on the first prompts of its benchmark, with the noise of seed 0."""

    pipe: Any
    model: flow.Guided
    prompts: Sequence[str]

    @classmethod
    def load(cls, count: int) -> FlowModel:
        plain = diffusers.StableDiffusion3Pipeline.from_pretrained(
            bundled.model_path("flow_text_to_image"), local_files_only=True
        )
        texts = [scene.caption for scene in sample_scenes(count, 1000, held_out=True)]
        pipe = QuickPipeline.of(plain)
        return cls(pipe, flow.Guided(pipe, texts, 1, [GUIDANCE]), texts)

    def images(self, make: flow.Make, steps: int) -> list[Tensor]:
        scheduler = make(self.pipe.scheduler.config)
        return [*decode(self.pipe, run_scheduler(scheduler, self.model, self.model.start, steps)).cpu()]

    @property
    def reference(self) -> list[Tensor]:
        return [*decode(self.pipe, self.model.reference()).cpu()]


def draw_hero(counts: Sequence[int] = (5, 8, 20)) -> None:
    """Of each number of steps what diffusers has with the least error, and the recommended setting."""
    loaded, rows = FlowModel.load(5), report.summarise(flow_results())
    makes, blocks = flow.schedulers((), [GUIDANCE]), []
    for steps in counts:
        panel = [row for row in rows if (row.steps, row.guidance) == (steps, GUIDANCE)]
        peer = min((row for row in panel if report.is_peer(row.arm)), key=lambda row: row.mean("latent_rms"))
        ours = next(row for row in panel if row.arm == "recommended")
        columns = []
        for row, label, colour in (
            (peer, peer.arm, style.PEERS[0]),
            (ours, f"recommended at guidance {GUIDANCE:g}", style.RECOMMENDED),
        ):
            own = row.arm.replace("recommended", "fastsample").replace("diffusers ", "diffusers\n")
            name = f"{own}\n{row.text('latent_rms')}"
            columns.append(grids.Row(name, loaded.images(makes[label], steps), colour))
        blocks.append((f"{steps} steps", columns))
    reference = grids.Row("reference: converged", loaded.reference)
    title = f"Same model, noise and prompts, guidance {GUIDANCE:g}: diffusers' best scheduler and the recommended one"
    note = (
        "Numbers: error to the converged solution (lower is better), mean ± standard deviation over 3 seeds of 16 "
        "prompts. diffusers' best: of its seven schedulers for this model the one with the least error at that "
        "number of steps. Pictures: the bundled flow-matching model, the first five held-out prompts, seed 0."
    )
    grids.side_by_side(blocks, reference, loaded.prompts, ROOT / "docs/hero.png", title, note)


def draw_flow(counts: Sequence[int] = (5, 8, 10)) -> None:
    """benchmarks/flow_text_to_image/images.png, as scripts/benchmark_flow_model.py --picture draws it."""
    loaded = FlowModel.load(6)
    path = BENCHMARKS / "flow_text_to_image/images.png"
    flow.draw(loaded.pipe, loaded.prompts, GUIDANCE, counts, flow.schedulers((), [GUIDANCE]), path)


DRAWN: dict[str, Callable[[], None]] = {
    "records": draw_records,
    "hero": draw_hero,
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
