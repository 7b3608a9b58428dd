"""Coarse first sweeps against sweeps of all rows, on the bundled pipelines: rounds, evaluations and errors.

    python scripts/benchmark_strides.py --out benchmarks/parallel_strides --images 4 --guidance 3
    python scripts/benchmark_strides.py --out benchmarks/parallel_strides --device cuda

All steps at once, secant, held-out prompts. Every case is written to strides.jsonl as it ends, and not run again.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from fastsample import DDIMScheduler, DPMSolverScheduler, ParallelSampler
from fastsample.bench.context import environment
from fastsample.bench.report import markdown_table
from fastsample.demo.bundled import MODELS, load_pipeline
from fastsample.demo.scenes import sample_scenes

SCHEDULERS: dict[str, Any] = {"ddim": DDIMScheduler, "dpmpp-2m": DPMSolverScheduler}
STRIDES: dict[str, Any] = {"none": "none", "auto": "auto", "6 6 3 3 2": (6, 6, 3, 3, 2)}
HEADER = ["model", "solver", "guidance", "steps", "tolerance", "strides", "rounds", "evaluations", "error"]


def sampled(pipe: Any, prompts: list[str], seed: int, sampler: Any, **options: Any) -> torch.Tensor:
    """Latents [B, ..] of the prompts, one stream an image."""
    generators = [torch.Generator().manual_seed(1000 * seed + index) for index in range(len(prompts))]
    extra = {"max_sequence_length": 16} if hasattr(pipe, "transformer") else {}
    latents: torch.Tensor = sampler(
        prompt=prompts, generator=generators, output_type="latent", **options, **extra
    ).images
    return latents


def case(pipe: Any, prompts: list[str], seed: int, options: dict[str, Any], tolerances: list[float]) -> list[Any]:
    """Each tolerance and choice of strides: mean rounds, evaluations an image, and the errors' quartiles."""
    exact = sampled(pipe, prompts, seed, pipe, **options)
    found = []
    for tolerance, strides in itertools.product(tolerances, STRIDES):
        sampler = ParallelSampler(pipe, window=None, tolerance=tolerance, strides=STRIDES[strides])
        latents = sampled(pipe, prompts, seed, sampler, **options)
        if sampler.run.fallback:
            raise RuntimeError(sampler.run.fallback)
        (report,) = sampler.run.reports
        own = 1 + (np.array(report.starts) < options["num_inference_steps"] - 1).sum(0)
        errors = ((latents - exact).flatten(1).square().mean(1).sqrt() / exact.std()).cpu().numpy()
        found.append(
            {
                "tolerance": tolerance,
                "strides": strides,
                "rounds": 1 + float(own.mean()),
                "evaluations": 1 + report.evaluations / len(prompts),
                "errors": np.quantile(errors, [0.25, 0.5, 0.75]).tolist(),
            }
        )
    return found


def main(
    out: Annotated[Path, typer.Option(help="Folder for strides.jsonl and strides.md.")],
    device: str = "cpu",
    images: int = 16,
    seeds: int = 3,
    steps: str = "25,50",
    guidance: str = "1,3,7.5",
    tolerances: str = "0.1,0.01,0.001",
    models: str = ",".join(MODELS),
) -> None:
    """Run every case that is not recorded yet."""
    out.mkdir(parents=True, exist_ok=True)
    record = out / "strides.jsonl"
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {(line["model"], line["solver"], line["guidance"], line["steps"], line["seed"]) for line in lines}
    if not lines:
        (out / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
    for model in models.split(","):
        pipe: Any = load_pipeline(device=device, name=model)
        for seed, solver, scale, count in itertools.product(
            range(seeds), SCHEDULERS, map(float, guidance.split(",")), map(int, steps.split(","))
        ):
            if (model, solver, scale, count, seed) in done:
                continue
            pipe.scheduler = SCHEDULERS[solver].from_config(pipe.scheduler.config)
            prompts = [scene.caption for scene in sample_scenes(images, seed, held_out=True)]
            options = {"num_inference_steps": count, "guidance_scale": scale}
            for cell in case(pipe, prompts, seed, options, [float(each) for each in tolerances.split(",")]):
                lines.append(
                    {"model": model, "solver": solver, "guidance": scale, "steps": count, "seed": seed, **cell}
                )
                with record.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    (out / "strides.md").write_text(table(lines))


def table(lines: list[dict[str, Any]]) -> str:
    """Means over the seeds with their range; the errors are medians over images, of the median seed."""
    rows = []
    keys = HEADER[:6]
    for key in dict.fromkeys(tuple(line[name] for name in keys) for line in lines):
        own = [line for line in lines if tuple(line[name] for name in keys) == key]
        spread = [
            f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
            for digits, values in (
                (2, [line["rounds"] for line in own]),
                (0, [line["evaluations"] for line in own]),
                (4, [line["errors"][1] for line in own]),
            )
        ]
        rows.append([*(f"{part:g}" if isinstance(part, (int, float)) else part for part in key), *spread])
    return markdown_table(HEADER, rows)


if __name__ == "__main__":
    typer.run(main)
