"""Error against model calls of the deterministic solvers, on a bundled model: the tables of benchmarks/samplers.md.

    python scripts/benchmark_samplers.py text_to_image          # a minute or two on a CPU
    python scripts/benchmark_samplers.py flow_text_to_image

RMS of the latents to 40 steps of UniPC of order 3 from the same noise, relative to their spread: held-out prompts,
guidance 3, the quadratic grid. Solvers of several calls a step get the steps that come nearest to 6, 10 and 20 calls.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import fastsample as fs
from fastsample.demo.bundled import load_pipeline
from fastsample.demo.scenes import sample_scenes
from fastsample.solvers import get_solver

CALLS = (6, 10, 20)
GRID, GUIDANCE = "quadratic", 3.0
SOLVERS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in ("ddim", "dpmpp-2m", "unipc", "ghvb", "hb-dpmpp-2m", "res-3m", "gradient-estimation")],
    ("dpmpp-2m", {"solver_type": "heun"}),
    ("er-sde", {"scale": "ode"}),
    ("sa-solver", {"eta": 0.0}),
    *[(name, {}) for name in ("heun", "dpm2", "res-2s", "exp-heun", "res-3s", "heunpp")],
    ("sa-solver-pece", {"eta": 0.0}),
    ("seeds-3", {"eta": 0.0}),
]


def steps_for(name: str, calls: int) -> int:
    """The steps of `name` that make about so many calls; the last step makes one."""
    solver = get_solver(name)
    each = solver.evaluations if solver.whole_steps else 1
    return round(calls / 3) + 1 if solver.looks_ahead else max(1, round((calls + each - 1) / each))


def main(
    model: Annotated[str, typer.Argument(help="text_to_image or flow_text_to_image.")] = "text_to_image",
    prompts: Annotated[int, typer.Option(help="How many held-out prompts.")] = 6,
) -> None:
    """Print a table."""
    pipe = load_pipeline(name=model)
    config, texts = pipe.scheduler.config, [scene.caption for scene in sample_scenes(prompts, seed=0, held_out=True)]

    def sample(scheduler: Any, steps: int) -> Tensor:
        pipe.scheduler = scheduler
        noise = [torch.Generator().manual_seed(seed) for seed in range(prompts)]
        made: Tensor = pipe(
            texts, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=noise, output_type="latent"
        ).images
        return made

    want = sample(fs.create_scheduler("unipc", config, grid=GRID, order=3), 40)
    print(
        "| solver | "
        + " | ".join(f"about {calls} calls" for calls in CALLS)
        + " |\n"
        + "|---" * (1 + len(CALLS))
        + "|"
    )
    for name, options in SOLVERS:
        cells = []
        for calls in CALLS:
            scheduler = fs.create_scheduler(name, config, grid=GRID, **options)
            error = float((sample(scheduler, steps_for(name, calls)) - want).square().mean().sqrt() / want.std())
            cells.append(f"{error:.4f} ({len(scheduler.timesteps)})")
        said = ", ".join(f"{key}={value}" for key, value in options.items())
        print(f"| `{name}` {said} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
