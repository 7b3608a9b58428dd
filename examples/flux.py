"""Flux in few steps: the recommended sampler and the model's own from the same noise, and its steps side by side.

python examples/flux.py --prompt "a lighthouse at dusk" --steps 10 --own-steps 28
python examples/flux.py --parallel    # all steps of a window at once: for several GPUs, see docs/parallel.md

Writes flux.png and flux_own.png and prints what each took. Flux has its guidance distilled into the network, so the
sampler is told 1, whatever `guidance` the network is told.
"""

from __future__ import annotations

import torch
import typer
from diffusers import FluxPipeline

import fastsample


def main(
    model: str = "black-forest-labs/FLUX.1-dev",
    prompt: str = "a lighthouse at dusk",
    guidance: float = 3.5,
    steps: int = 10,
    own_steps: int = 28,
    size: int = 1024,
    parallel: bool = False,
    seed: int = 0,
) -> None:
    """Draw by the recommended sampler and by the model's own; with `parallel`, the latter in parallel sweeps too."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = FluxPipeline.from_pretrained(model, torch_dtype=dtype).to(device)
    call = {"prompt": prompt, "guidance_scale": guidance, "height": size, "width": size}

    def generator() -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    with fastsample.recommend(pipe, guidance=1.0, steps=steps).apply(pipe) as run:
        pipe(**call, generator=generator()).images[0].save("flux.png")
        own = run.measure_plain(**call, generator=generator(), num_inference_steps=own_steps)
        own.images[0].save("flux_own.png")
        print(run.summary())
    if parallel:
        sampler = fastsample.ParallelSampler(pipe, window=8, tolerance=1e-2)
        sampler(**call, generator=generator(), num_inference_steps=own_steps).images[0].save("flux_parallel.png")
        print(f"parallel: {sampler.run.rounds} rounds for {own_steps} steps")


if __name__ == "__main__":
    typer.run(main)
