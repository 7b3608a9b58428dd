"""SDXL in few steps: the recommended sampler, a guidance cut, and the model's own sampler beside them.

python examples/sdxl.py --prompt "a lighthouse at dusk" --steps 12 --own-steps 30 --guided 0.5

Writes sdxl.png and sdxl_own.png, from the same noise, and prints what each took.
"""

from __future__ import annotations

import dataclasses

import torch
import typer
from diffusers import StableDiffusionXLPipeline

import fastsample


def main(
    model: str = "stabilityai/stable-diffusion-xl-base-1.0",
    prompt: str = "a lighthouse at dusk",
    guidance: float = 5.0,
    steps: int = 12,
    own_steps: int = 30,
    guided: float = 1.0,
    seed: int = 0,
) -> None:
    """Draw by the recipe, guided in the part `guided` of the steps, and by the model's own scheduler."""
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = StableDiffusionXLPipeline.from_pretrained(model, torch_dtype=dtype).to(device)
    recipe = fastsample.recommend(pipe, guidance=guidance, steps=steps)
    if guided < 1:
        recipe = dataclasses.replace(recipe, guidance_cut=fastsample.GuidanceCut(0.0, guided))
    call = {"prompt": prompt, "guidance_scale": guidance}
    with recipe.apply(pipe) as run:
        pipe(**call, generator=torch.Generator(device).manual_seed(seed)).images[0].save("sdxl.png")
        call |= {"generator": torch.Generator(device).manual_seed(seed), "num_inference_steps": own_steps}
        run.measure_plain(**call).images[0].save("sdxl_own.png")
        print(run.summary())


if __name__ == "__main__":
    typer.run(main)
