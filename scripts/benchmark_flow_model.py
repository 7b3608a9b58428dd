"""Error of schedulers on the bundled flow-matching model, ours beside diffusers', by grid, steps and guidance.

    python scripts/benchmark_flow_model.py --out results/flow                                  # minutes on a CPU
    python scripts/benchmark_flow_model.py --out results/flow --device cuda --prompts 32 --seeds 3 \
      --steps 5,8,10,20,50 --guidance 1,3,5

Held-out prompts at the pipeline's default text length. The error of an image is the RMS of its latents to 50 steps
of the classical Runge-Kutta method from the same noise, relative to their spread. A model evaluation is a step, and
diffusers' Heun gets as many steps as its evaluations allow. Each result is written as it comes to
OUT/results.jsonl, from which the same command goes on; OUT/results.md holds the tables.
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import typer
from benchmark_flow import Make, flow_sigmas, ours
from flow_model import QuickPipeline
from torch import Tensor

from fastsample.bench import style
from fastsample.bench.context import context_of, environment, modules_of
from fastsample.bench.grids import Row, image_grid
from fastsample.bench.metrics import decode
from fastsample.bench.record import Record, Result
from fastsample.bench.report import markdown_table
from fastsample.demo import bundled
from fastsample.demo.scenes import sample_scenes
from fastsample.names.recommended import recommended
from fastsample.testing import run_scheduler

REFERENCE = 50
"""Steps of the reference, four evaluations each."""
HEUN = "diffusers Heun"
EULER = diffusers.FlowMatchEulerDiscreteScheduler
PEERS: dict[str, Make] = {
    "diffusers Euler": EULER.from_config,
    **{
        f"diffusers Euler, {grid}": lambda config, grid=grid: EULER.from_config(
            config, **{f"use_{grid}_sigmas": True}
        )
        for grid in ("karras", "beta", "exponential")
    },
    HEUN: diffusers.FlowMatchHeunDiscreteScheduler.from_config,
    "diffusers DPM++ 2M": flow_sigmas(diffusers.DPMSolverMultistepScheduler),
    "diffusers UniPC": flow_sigmas(diffusers.UniPCMultistepScheduler),
}
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("ddim", {}),
    "2M": ("dpmpp-2m", {}),
    "3M": ("dpmpp-3m", {}),
    "UniPC": ("unipc", {}),
    "UniPC 3": ("unipc", {"order": 3}),
    "DEIS 3": ("deis", {}),
    "iPNDM 4": ("ipndm", {}),
    "Adams 2": ("adams", {"order": 2}),
    "HB": ("hb-dpmpp-2m", {}),
    "GHVB 1": ("ghvb", {"order": 1}),
    "GHVB 2": ("ghvb", {"order": 2}),
    "GHVB 4": ("ghvb", {}),
    "accelerated": ("accelerated", {}),
}
GRIDS = ("trailing", "quadratic", "shifted-quadratic", "beta", "karras")


class Guided:
    """The model's velocity with each row's own guidance: rows are guidance scales x seeds x prompts."""

    def __init__(self, pipe: Any, prompts: Sequence[str], seeds: int, guidance: Sequence[float]) -> None:
        self.transformer, rows = pipe.transformer, len(guidance) * seeds
        words, _, pooled, _ = pipe.encode_prompt(list(prompts), list(prompts), list(prompts))
        empty, _, none, _ = pipe.encode_prompt("", "", "")
        self.scale = torch.tensor(guidance).repeat_interleave(seeds * len(prompts)).to(words.device)
        self.guided = self.scale != 1
        count = int(self.guided.sum())
        self.words = torch.cat([words.repeat(rows, 1, 1), empty.expand(count, -1, -1)])
        self.pooled = torch.cat([pooled.repeat(rows, 1), none.expand(count, -1)])
        noise = [
            torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1_000_003 * (seed + 1) + row))
            for seed in range(seeds)
            for row in range(len(prompts))
        ]
        self.start = torch.stack(noise).to(words).repeat(len(guidance), 1, 1, 1)

    @torch.no_grad()
    def __call__(self, x: Tensor, time: Any) -> Tensor:
        both = torch.cat([x, x[self.guided]])
        told = torch.as_tensor(time, dtype=torch.float32, device=x.device).expand(len(both))
        (velocity,) = self.transformer(both, self.words, self.pooled, told, return_dict=False)
        asked, free = velocity[: len(x)], velocity[len(x) :]
        scale = self.scale[self.guided, None, None, None]
        asked[self.guided] = free + scale * (asked[self.guided] - free)
        return asked

    def reference(self, steps: int = REFERENCE) -> Tensor:
        """dx / d sigma = velocity by the classical Runge-Kutta method, steps uniform in sqrt(sigma)."""
        x, sigmas = self.start, torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2
        for sigma, step in zip(sigmas.tolist(), sigmas.diff().tolist(), strict=False):
            k1 = self(x, 1000 * sigma)
            k2 = self(x + step / 2 * k1, 1000 * (sigma + step / 2))
            k3 = self(x + step / 2 * k2, 1000 * (sigma + step / 2))
            k4 = self(x + step * k3, 1000 * (sigma + step))
            x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return x


def schedulers(grids: Sequence[str], guidance: Sequence[float]) -> dict[str, Make]:
    """diffusers'; ours as `from_config` makes them, then without a limit; on grids by name; what is recommended."""
    made = dict(PEERS)
    for name, (solver, options) in SOLVERS.items():
        made[f"{name}, own grid"] = ours(solver, **options)
    for name, (solver, options) in list(SOLVERS.items())[1:]:
        made[f"{name}, own grid, no limit"] = ours(solver, stable_guidance=None, **options)
    for grid in grids:
        for name, (solver, options) in SOLVERS.items():
            made[f"{name}, {grid}"] = ours(solver, grid, stable_guidance=3.0, **options)
    for scale in guidance:
        setting = recommended("flow", scale)
        made[f"recommended at guidance {scale:g}"] = ours(setting.solver, setting.grid, **setting.options)
    return made


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def judged(latents: Tensor, exact: Tensor, images: Tensor, prompts: Sequence[str]) -> Result:
    """Of the images of one guidance scale and seed."""
    errors = (latents - exact).double().square().flatten(1).mean(1).sqrt() / exact.double().std()
    fidelity = bundled.prompt_fidelity(images, prompts)
    return {
        "errors": [round(error, 6) if math.isfinite(error) else None for error in errors.tolist()],
        "attributes": fidelity["attributes"],
        "prompts": fidelity["prompts"],
    }


def run(
    pipe: Any,
    record: Record,
    prompts: Sequence[str],
    seeds: int,
    guidance: Sequence[float],
    steps: Sequence[int],
    makes: dict[str, Make],
) -> Iterator[Result]:
    """Every scheduler at every number of steps; guidance scales and seeds side by side in one batch."""
    model, config = Guided(pipe, prompts, seeds, guidance), pipe.scheduler.config
    known = environment(pipe.device)
    context = context_of(modules_of(pipe), pipe.device, list(prompts), seeds, list(guidance))
    exact: Tensor | None = None
    for count in steps:
        for label, make in makes.items():
            key = f"{context} {label} {count}"
            if key not in record.results:
                exact = model.reference() if exact is None else exact
                evaluated = (count + 1) // 2 if label == HEUN else count
                latents = run_scheduler(make(config), model, model.start, evaluated, device=pipe.device)
                images = decode(pipe, latents).cpu()
                parts = []
                for begin in range(0, len(latents), len(prompts)):
                    own = slice(begin, begin + len(prompts))
                    scale, seed = divmod(begin // len(prompts), seeds)
                    told = {"guidance": guidance[scale], "seed": seed}
                    parts.append(told | judged(latents[own], exact[own], images[own], prompts))
                record.append({"key": key, "scheduler": label, "steps": count, "parts": parts, "environment": known})
            yield record.results[key]


def tables(results: Sequence[Result], guidance: Sequence[float], steps: Sequence[int]) -> str:
    """Of each guidance scale: RMS over prompts, mean and spread over seeds; medians, quartiles, prompts right."""
    found = {(result["scheduler"], result["steps"]): result["parts"] for result in results}
    labels = list(dict.fromkeys(result["scheduler"] for result in results))
    text = ""
    for scale in guidance:
        for title, cell in (("RMS", rms_cell), ("median (quartiles), prompts right", median_cell)):
            body = [
                [label, *(cell([p for p in found[label, n] if p["guidance"] == scale]) for n in steps)]
                for label in labels
            ]
            text += f"\nGuidance {scale:g}: {title}\n\n" + markdown_table(["scheduler", *map(str, steps)], body)
    return text


def draw(
    pipe: Any, prompts: Sequence[str], scale: float, steps: Sequence[int], makes: dict[str, Make], path: Path
) -> None:
    """Images of diffusers' and the recommended scheduler by steps, and of the reference, from the same noise."""
    model, config = Guided(pipe, prompts, 1, [scale]), pipe.scheduler.config
    shown = ("diffusers Euler", "diffusers DPM++ 2M", f"recommended at guidance {scale:g}")
    colours = style.colours(shown, keep=shown[-1])
    rows = [Row(f"reference: {REFERENCE} steps of Runge-Kutta 4", [*decode(pipe, model.reference()).cpu()])]
    for count in steps:
        for label in shown:
            latents = run_scheduler(makes[label](config), model, model.start, count, device=pipe.device)
            name = f"{count} steps, {label.partition(' at ')[0]}"
            rows.append(Row(name, [*decode(pipe, latents).cpu()], colours[label]))
    image_grid(rows, path, prompts, f"guidance {scale:g}, seed 0: the same noise in each column")


def rms_of(part: Result) -> float:
    """Over the images of a seed."""
    errors = [math.inf if error is None else error for error in part["errors"]]
    return math.sqrt(statistics.mean(error**2 for error in errors))


def rms_cell(parts: Sequence[Result]) -> str:
    values = [rms_of(part) for part in parts]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 and math.isfinite(sum(values)) else ""
    return f"{statistics.mean(values):.4f}{spread}"


def median_cell(parts: Sequence[Result]) -> str:
    errors = [math.inf if error is None else error for part in parts for error in part["errors"]]
    low, middle, high = np.quantile(errors, (0.25, 0.5, 0.75), method="nearest")
    return f"{middle:.4f} ({low:.4f} - {high:.4f}), {statistics.mean(part['prompts'] for part in parts):.0%}"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("results/flow_model"),
    prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 4,
    seeds: int = 1,
    steps: Annotated[str, typer.Option(help="Model evaluations, separated by commas.")] = "5,8,10,20",
    guidance: Annotated[str, typer.Option(help="Guidance scales, separated by commas.")] = "1,3",
    grids: Annotated[str, typer.Option(help="Grids of our solvers, separated by commas.")] = ",".join(GRIDS),
    only: Annotated[str, typer.Option(help="Schedulers whose name has one of these, separated by |.")] = "",
    device: str = "cpu",
    picture: Annotated[Path | None, typer.Option(help="Where to write images at the last guidance.")] = None,
    folder: Annotated[Path | None, typer.Option(help="A trained pipeline in place of the bundled one.")] = None,
) -> None:
    """Run what is missing and write the tables."""
    warnings.simplefilter("ignore")  # diffusers warns of options that it reads anew
    torch.backends.cudnn.allow_tf32 = False
    plain = diffusers.StableDiffusion3Pipeline.from_pretrained(
        folder or bundled.model_path("flow_text_to_image"), local_files_only=True
    ).to(device)
    texts = [scene.caption for scene in sample_scenes(prompts, 1000, held_out=True)]
    scales, counts = numbers(guidance), [int(count) for count in numbers(steps)]
    made = schedulers(grids.split(","), scales)
    made = {name: make for name, make in made.items() if any(part in name for part in only.split("|"))}
    pipe, results = QuickPipeline.of(plain), []
    for result in run(
        pipe,
        Record(out / "results.jsonl"),
        texts,
        seeds,
        scales,
        counts,
        made,
    ):
        print(
            result["steps"],
            result["scheduler"],
            " ".join(f"{rms_of(part):.4f}" for part in result["parts"]),
            flush=True,
        )
        results.append(result)
    if picture:
        draw(pipe, texts[:8], scales[-1], counts[:3], schedulers((), scales), picture)
    (out / "results.md").write_text(tables(results, scales, counts))


if __name__ == "__main__":
    typer.run(main)
