"""What the bundled models draw in few steps, by diffusers' sampler and by the recommended one: the README's pictures.

python scripts/draw_steps.py    # writes docs/images/steps_vp.png and steps_flow.png; 1 minute on 2 cores

Held-out prompts, guidance 3, one noise a prompt for all samplers. Numbers are the RMS of the final latents to those
of a converged run from the same noise, relative to their spread, over all prompts; the first few of them are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import matplotlib.pyplot as plt
import torch
import typer
from torch import Tensor

from fastsample import NoiseSchedule, create_scheduler
from fastsample.demo.bundled import load_pipeline
from fastsample.demo.scenes import sample_scenes
from fastsample.names.recommended import recommended

OUT = Path(__file__).parents[1] / "docs" / "images"
GUIDANCE, STEPS, SHOWN = 3.0, (5, 8, 20), 3
PEERS = {
    "text_to_image": ("diffusers\nDPM++ 2M", diffusers.DPMSolverMultistepScheduler),
    "flow_text_to_image": ("diffusers\nEuler", diffusers.FlowMatchEulerDiscreteScheduler),
}
FILES = {"text_to_image": "steps_vp.png", "flow_text_to_image": "steps_flow.png"}
TITLES = {"text_to_image": "Stable Diffusion", "flow_text_to_image": "Stable Diffusion 3 (flow matching)"}
CALLS: dict[str, dict[str, Any]] = {"text_to_image": {}, "flow_text_to_image": {"max_sequence_length": 16}}


def latents(pipe: Any, scheduler: Any, prompts: Sequence[str], steps: int, **call: Any) -> Tensor:
    """The final latents of all prompts, each from its own noise."""
    pipe.scheduler = scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    call |= {"guidance_scale": GUIDANCE, "num_inference_steps": steps, "output_type": "latent"}
    found: Tensor = pipe(list(prompts), generator=generators, **call).images
    return found


def pictures(pipe: Any, found: Tensor) -> Tensor:
    """What the pipeline's decoder makes of latents: [B, H, W, 3] in [0, 1]."""
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    with torch.no_grad():
        decoded: Tensor = pipe.vae.decode(found / pipe.vae.config.scaling_factor + shift).sample
    return (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)


def draw(name: str, prompts: Sequence[str], out: Path) -> None:
    """One picture: a column a number of steps and the converged one, a row a sampler."""
    pipe = load_pipeline(name=name)
    config = pipe.scheduler.config
    setting = recommended(NoiseSchedule.from_config(config).kind, GUIDANCE)
    label, peer = PEERS[name]
    rows = {
        label: peer.from_config(config),
        "fastsample": create_scheduler(setting.solver, config, grid=setting.grid, **setting.options),
    }
    call = CALLS[name]
    exact = latents(pipe, create_scheduler("dpmpp-2m", config, stable_guidance=None), prompts, 150, **call)
    columns = len(STEPS) + 1
    figure, axes = plt.subplots(len(rows), columns, figsize=(11, 2.9), layout="constrained")
    what = "error to the converged latents: lower is better"
    figure.suptitle(f"{TITLES[name]}, guidance {GUIDANCE:g}, {len(prompts)} prompts; {what}", fontsize=11)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for row, (sampler, scheduler) in enumerate(rows.items()):
        weight = "bold" if sampler == "fastsample" else "normal"
        axes[row, 0].set_ylabel(sampler, fontsize=11, fontweight=weight, rotation=0, ha="right", va="center")
        for column, steps in enumerate(STEPS):
            found = latents(pipe, scheduler, prompts, steps, **call)
            error = float((found - exact).square().mean().sqrt() / exact.std())
            _show(axes[row, column], pictures(pipe, found[:SHOWN]))
            axes[row, column].set_xlabel(f"error {error:.3f}", fontsize=10)
            if row == 0:
                axes[row, column].set_title(f"{steps} steps", fontsize=11)
        _show(axes[row, -1], pictures(pipe, exact[:SHOWN]))
    axes[0, -1].set_title("converged", fontsize=11)
    figure.savefig(out / FILES[name], dpi=110)


def _show(axis: Any, images: Tensor) -> None:
    """Images side by side, with a white line between."""
    padded = torch.nn.functional.pad(images, (0, 0, 1, 1, 1, 1), value=1.0)
    axis.imshow(torch.cat(list(padded), dim=1).numpy(), interpolation="nearest")


def main(
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = OUT,
    prompts: Annotated[int, typer.Option(help="Held-out prompts of which the error is the mean.")] = 12,
) -> None:
    """Draw both."""
    out.mkdir(parents=True, exist_ok=True)
    captions = [scene.caption for scene in sample_scenes(prompts, 3, held_out=True)]
    for name in FILES:
        draw(name, captions, out)


if __name__ == "__main__":
    typer.run(main)
