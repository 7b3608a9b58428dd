"""What a Picard consistency model gains on the bundled text-to-image model: records and a picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastsample as fs
from fastsample.bench.context import environment
from fastsample.bench.metrics import decode
from fastsample.bench.report import markdown_table
from fastsample.demo import bundled
from fastsample.demo.scenes import sample_scenes

ROUNDS = 6
"""The most rounds of which the images are compared."""
TOLERANCES = (0.1, 0.01)
SHOWN = 4
"""Prompts on the picture."""


def methods(weights: Any) -> dict[str, dict[str, Any]]:
    """What is compared, by name: options of ParallelSampler."""
    tuned = {"consistency": weights}
    return {
        "Picard": {"iteration": "picard"},
        "secant": {"iteration": "secant"},
        "consistency + Picard": {"iteration": "picard", **tuned},
        "consistency + secant": {"iteration": "secant", **tuned},
    }


def sample(call: Any, prompts: list[str], seed: int, steps: int) -> Tensor:
    """Latents [B, 4, 8, 8] of the prompts, one stream an image."""
    generators = [torch.Generator().manual_seed(1000 * seed + index) for index in range(len(prompts))]
    options = {"guidance_scale": bundled.GUIDANCE, "generator": generators, "output_type": "latent"}
    latents: Tensor = call(prompts, num_inference_steps=steps, **options).images
    return latents.cpu()


def by_rounds(pipe: Any, options: dict[str, Any], prompts: list[str], seed: int, steps: int) -> list[Tensor]:
    """The latents as they are after 2, 3, .. rounds, of one call."""
    found: list[Tensor] = []
    keep: Any = {"on_sweep": lambda iteration: found.append(iteration.trajectory[-1].cpu().clone())}
    sample(fs.ParallelSampler(pipe, tolerance=0.0, rounds=ROUNDS, **options, **keep), prompts, seed, steps)
    return found


def error(latents: Tensor, exact: Tensor) -> list[float]:
    """RMS of each image, over the spread of the exact ones."""
    return ((latents - exact).flatten(1).square().mean(1).sqrt() / exact.std()).tolist()


def cases(weights: Any, counts: list[int], seeds: int, images: int, device: str) -> Iterator[dict[str, Any]]:
    """For each method, number of steps and seed: the images' errors by rounds, and rounds and errors by tolerance."""
    pipe = ddim_pipeline(device)
    for steps, seed in itertools.product(counts, range(seeds)):
        prompts = [scene.caption for scene in sample_scenes(images, 100 + seed, held_out=True)]
        exact = sample(pipe, prompts, seed, steps)
        for name, options in methods(weights).items():
            record: dict[str, Any] = {"method": name, "steps": steps, "seed": seed, "images": images}
            record["errors"] = [error(each, exact) for each in by_rounds(pipe, options, prompts, seed, steps)]
            for tolerance in TOLERANCES:
                sampler = fs.ParallelSampler(pipe, window=None, tolerance=tolerance, strides="none", **options)
                off = error(sample(sampler, prompts, seed, steps), exact)
                (report,) = sampler.run.reports
                own = 2 + (np.array(report.starts) < steps - 1).sum(0)
                record[f"rounds_{tolerance:g}"], record[f"error_{tolerance:g}"] = own.tolist(), off
            yield record


def ddim_pipeline(device: str) -> Any:
    """The bundled pipeline with DDIM."""
    pipe: Any = bundled.load_pipeline(device=device)
    pipe.scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def evaluate(weights: Any, out: Path, counts: list[int], seeds: int, images: int, device: str) -> None:
    """Writes OUT/results.json and results.md."""
    torch.backends.cudnn.allow_tf32 = False
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for record in cases(weights, counts, seeds, images, device):
        records.append(record)
        print(json.dumps(summary([record])), flush=True)
    (out / "results.json").write_text(
        json.dumps({"environment": environment(device), "cases": records}, indent=1) + "\n"
    )
    (out / "results.md").write_text(table(records))


def summary(own: list[dict[str, Any]]) -> dict[str, str]:
    """Means over images, and in brackets their range over the seeds."""
    cells = {
        f"error, {rounds} rounds": [np.mean(record["errors"][rounds - 2]) for record in own]
        for rounds in range(2, ROUNDS + 1)
    }
    cells |= {f"rounds at {each:g}": [np.mean(record[f"rounds_{each:g}"]) for record in own] for each in TOLERANCES}
    cells |= {f"error at {each:g}": [np.mean(record[f"error_{each:g}"]) for record in own] for each in TOLERANCES}
    named = {"steps": str(own[0]["steps"]), "method": own[0]["method"]}
    return named | {
        name: f"{np.mean(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
        for name, values in cells.items()
        for digits in [2 if name.startswith("rounds") else 3]
    }


def table(records: list[dict[str, Any]]) -> str:
    """A row for each method and number of steps."""
    keys = dict.fromkeys((record["steps"], record["method"]) for record in records)
    rows = [summary([one for one in records if (one["steps"], one["method"]) == key]) for key in keys]
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def picture(weights: Any, path: Path, steps: int = 25, seed: int = 7) -> None:
    """The images after 1 to 5 rounds of each method, a row a prompt and method, the exact ones last."""
    from matplotlib.figure import Figure  # only to draw: machines to evaluate on may not have it

    pipe, prompts = ddim_pipeline("cpu"), [scene.caption for scene in sample_scenes(SHOWN, 100 + seed, held_out=True)]
    exact, first = (decode(pipe, sample(pipe, prompts, seed, count)) for count in (steps, 1))
    shown = {name: options for name, options in methods(weights).items() if name != "consistency + Picard"}
    columns = {
        name: [first, *(decode(pipe, each) for each in by_rounds(pipe, options, prompts, seed, steps)[:4]), exact]
        for name, options in shown.items()
    }
    figure = Figure(figsize=(8.5, 1.25 * SHOWN * len(shown)))
    axes = figure.subplots(SHOWN * len(shown), 6)
    figure.subplots_adjust(wspace=0.05, hspace=0.12)
    labels = itertools.product(range(SHOWN), shown)
    for number, (row, (item, name)) in enumerate(zip(axes, labels, strict=True)):
        for column, (axis, images) in enumerate(zip(row, columns[name], strict=True), 1):
            axis.imshow(images[item].clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.axis("off")
            if number == 0:
                axis.set_title("exact" if column == 6 else f"{column} round{'s' * (column > 1)}", fontsize=8)
        row[0].text(-0.08, 0.5, name, transform=row[0].transAxes, fontsize=8, ha="right", va="center")
        if name == next(iter(shown)):
            row[-1].text(1.08, 0.5, prompts[item], transform=row[-1].transAxes, fontsize=7, va="center", wrap=True)
    figure.savefig(path, dpi=100, bbox_inches="tight")
