"""Wan in fewer evaluations: the recommended sampler, guided in the first part of the steps.

python examples/wan.py --prompt "waves at a lighthouse" --steps 16 --own-steps 50 --guided 0.6

Writes wan.gif and wan_own.gif and prints what each took.
"""

from __future__ import annotations

import dataclasses

import torch
import typer
from diffusers import WanPipeline

import fastsample


def main(
    model: str = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    prompt: str = "waves at a lighthouse",
    guidance: float = 5.0,
    steps: int = 16,
    own_steps: int = 50,
    guided: float = 1.0,
    height: int = 480,
    width: int = 832,
    frames: int = 33,
    seed: int = 0,
) -> None:
    """Draw a video by the recipe and by the model's own scheduler."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    pipe = WanPipeline.from_pretrained(model, torch_dtype=dtype).to(device)
    recipe = fastsample.recommend(pipe, guidance=guidance, steps=steps)
    if guided < 1:
        recipe = dataclasses.replace(recipe, guidance_cut=fastsample.GuidanceCut(0.0, guided))
    call = {"prompt": prompt, "guidance_scale": guidance, "height": height, "width": width, "num_frames": frames}
    call["output_type"] = "pil"
    with recipe.apply(pipe) as run:
        video = pipe(**call, generator=torch.Generator(device).manual_seed(seed)).frames[0]
        call |= {"generator": torch.Generator(device).manual_seed(seed), "num_inference_steps": own_steps}
        own = run.measure_plain(**call).frames[0]
        print(run.summary())
    for name, pictures in (("wan.gif", video), ("wan_own.gif", own)):
        pictures[0].save(name, save_all=True, append_images=pictures[1:], duration=62, loop=0)


if __name__ == "__main__":
    typer.run(main)
