"""Guidance cuts and parallel sampling on the bundled flow-matching model: a Markdown table.

    python scripts/benchmark_flow_savings.py [--prompts 4]

Held-out prompts at guidance 3, a text length of 16 zero tokens. Error: RMS of the latents to those of the same
scheduler without the saving, relative to their spread. Rows: guidance in a part of the steps alone (evaluations are
branches an image), and all steps by secant sweeps (rounds are calls of the network one after the other).
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import fastsample as fs
from fastsample.bench.metrics import decode, rms
from fastsample.bench.report import markdown_table
from fastsample.demo import bundled
from fastsample.demo.scenes import sample_scenes
from fastsample.names.recommended import FLOW
from fastsample.pipelines.counting import count

CUTS = ((0.0, 0.75), (0.0, 0.5), (0.0, 0.25), (0.1, 0.75), (0.25, 1.0))
TOLERANCES = (1e-1, 1e-2)


def main(prompts: Annotated[int, typer.Option(help="Held-out prompts.")] = 4) -> None:
    """Print the table."""
    pipe = bundled.load_pipeline(name="flow_text_to_image")
    texts = [scene.caption for scene in sample_scenes(prompts, 1000, held_out=True)]
    noise = torch.randn(prompts, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    euler = pipe.scheduler
    recommended = fs.create_scheduler(FLOW.solver, euler.config, grid=FLOW.grid, **FLOW.options)

    def sample(caller: Any, steps: int) -> Tensor:
        settings: dict[str, Any] = dict(guidance_scale=3.0, max_sequence_length=16, output_type="latent")
        latents: Tensor = caller(prompt=texts, num_inference_steps=steps, latents=noise, **settings).images
        return latents

    def row(name: str, latents: Tensor, plain: Tensor, cost: str) -> list[str]:
        right = bundled.prompt_fidelity(decode(pipe, latents), texts)["prompts"]
        return [name, f"{rms(latents, plain) / float(plain.std()):.4f}", f"{right:.0%}", cost]

    body = []
    for label, scheduler, steps in (
        ("recommended, 8 steps", recommended, 8),
        ("recommended, 20 steps", recommended, 20),
    ):
        pipe.scheduler = scheduler
        plain = sample(pipe, steps)
        for start, stop in CUTS:
            with fs.GuidanceCut(start, stop).apply(pipe), count(pipe, prompts) as ledger:
                cut = sample(pipe, steps)
            body.append(
                row(f"{label}, guided {start:g} to {stop:g}", cut, plain, f"{ledger.model_evaluations:g} evaluations")
            )
    for label, scheduler in (("Euler, 28 steps", euler), ("recommended, 28 steps", recommended)):
        pipe.scheduler = scheduler
        plain = sample(pipe, 28)
        for tolerance in TOLERANCES:
            run = fs.ParallelSampler(pipe, iteration="secant", window=None, tolerance=tolerance)
            swept = sample(run, 28)
            body.append(row(f"{label}, secant to {tolerance:g}", swept, plain, f"{run.run.rounds} rounds"))
    print(markdown_table(["guidance 3", "error", "prompts right", "cost"], body))


if __name__ == "__main__":
    typer.run(main)
