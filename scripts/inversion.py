"""How well pictures of the bundled models come back from the noise that inversion finds, by solver and steps.

    python scripts/inversion.py

Prints a Markdown table: the error of the latents after inversion and sampling with the same solver and steps, without
guidance, relative to the spread of the latents (root mean squares over four pictures).
"""

from __future__ import annotations

import torch

import fastsample as fs
from fastsample.demo.bundled import MODELS, load_pipeline
from fastsample.demo.scenes import render_batch, sample_scenes
from fastsample.pipelines.latents import encode

STEPS = (5, 10, 20, 40)
SOLVERS = ("ddim", "dpm-2m", "dpmpp-2m", "dpm-3m")
COUNT = 4


def main() -> None:
    """Print the table."""
    scenes = sample_scenes(COUNT, 0, held_out=True)
    prompts, pictures = [scene.caption for scene in scenes], torch.from_numpy(render_batch(scenes, 0))
    print(f"| model | solver | {' | '.join(f'{steps} steps' for steps in STEPS)} |")
    print(f"|---|---|{'---|' * len(STEPS)}")
    for name in MODELS:
        pipe = load_pipeline(name=name)
        config = pipe.scheduler.config
        clean, _, _ = encode(pipe, pictures)
        for solver in SOLVERS:
            cells = []
            for steps in STEPS:
                pipe.scheduler = fs.create_scheduler(solver, config)
                noise = fs.invert(pipe, pictures, prompts, num_inference_steps=steps, solver=solver)
                call = {"num_inference_steps": steps, "guidance_scale": 1.0, "output_type": "latent"}
                again = pipe(prompts, latents=noise, **call)[0]
                cells.append(f"{float((again - clean).square().mean().sqrt() / clean.std()):.3f}")
            print(f"| {name} | {solver} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
