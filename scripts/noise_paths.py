"""How alike the images of one seed are at 10, 20 and 40 steps, with noise drawn anew and with noise of one path.

    python scripts/noise_paths.py

Prints a Markdown table: the correlation of the final latents of the bundled text-to-image model between two step
counts; 1 is the same image.
"""

from __future__ import annotations

import itertools

import torch

import fastsample as fs
from fastsample.demo.bundled import load_pipeline

STEPS = (10, 20, 40)
SOLVERS = {"dpmpp-2m-sde": {}, "euler": {"eta": 1.0}}
PROMPT, SEEDS, GUIDANCE = "a large red circle on a white background", 8, 3.0


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
                call = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "latent"}
                latents.append(pipe([PROMPT] * SEEDS, generator=generators, **call).images)
            cells = [
                f"{torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]:.3f}"
                for one, two in itertools.combinations(latents, 2)
            ]
            print(f"| {solver} | {noise} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
