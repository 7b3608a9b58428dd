"""How alike the images of one seed are at 10, 20 and 40 steps, with noise drawn anew and with noise of one path.

    python scripts/noise_paths.py

Prints a Markdown table: the correlation of an image's final latents between two step counts, the median over images
of the bundled text-to-image model. Without a prompt, so that noise alone decides which scene comes.
"""

from __future__ import annotations

import itertools

import torch

import fastsample as fs
from fastsample.demo.bundled import load_pipeline

STEPS = (10, 20, 40)
SOLVERS = {"dpmpp-2m-sde": {}, "euler": {"eta": 1.0}}
SEEDS = 16


def likeness(one: torch.Tensor, two: torch.Tensor) -> float:
    """The median over images of the correlation of their elements."""
    pairs = zip(one.flatten(1), two.flatten(1), strict=True)
    return float(torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).median())


def main() -> None:
    """Print the table."""
    pipe = load_pipeline()
    own = pipe.scheduler
    print("| solver | noise | " + " | ".join(f"{a}, {b}" for a, b in itertools.combinations(STEPS, 2)) + " |")
    print("|---|---|" + "---|" * 3)
    for solver, options in SOLVERS.items():
        for noise in ("independent", "brownian"):
            latents = []
            for steps in STEPS:
                pipe.scheduler = fs.create_scheduler(solver, own.config, grid="karras", noise=noise, **options)
                generators = [torch.Generator().manual_seed(seed) for seed in range(SEEDS)]
                call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent"}
                latents.append(pipe([""] * SEEDS, generator=generators, **call).images)
            cells = [f"{likeness(one, two):.3f}" for one, two in itertools.combinations(latents, 2)]
            print(f"| {solver} | {noise} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
