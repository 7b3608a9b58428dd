"""What the bundled models draw in few steps, by the best of diffusers and by the recommended setting: the README's.

python scripts/draw_steps.py    # writes docs/images/steps_vp.png and steps_flow.png; 2 minutes on 2 cores

Held-out prompts, guidance 3, one noise a prompt for all samplers. Numbers are the RMS of the final latents to those
of a converged run from the same noise, relative to their spread, over all prompts; the first few of them are shown.
Of diffusers' schedulers that is shown which has the least error at that number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

from fastsample import NoiseSchedule, create_scheduler
from fastsample.bench import style
from fastsample.demo.bundled import load_pipeline
from fastsample.demo.scenes import sample_scenes
from fastsample.names.recommended import recommended

OUT = Path(__file__).parents[1] / "docs" / "images"
GUIDANCE, STEPS, SHOWN = 3.0, (5, 8, 20), 3
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@dataclass(frozen=True)
class Model:
    """A bundled model: its picture's file and title, diffusers' schedulers for it, what its call needs besides."""

    file: str
    title: str
    peers: Mapping[str, tuple[type, dict[str, Any]]]
    call: Mapping[str, Any]


MODELS = {
    "text_to_image": Model(
        "steps_vp.png",
        "Stable Diffusion",
        {
            "DDIM": (diffusers.DDIMScheduler, {}),
            "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, {}),
            "UniPC": (diffusers.UniPCMultistepScheduler, {}),
            "DEIS": (diffusers.DEISMultistepScheduler, {}),
        },
        {},
    ),
    "flow_text_to_image": Model(
        "steps_flow.png",
        "Stable Diffusion 3 (flow matching)",
        {
            "Euler": (diffusers.FlowMatchEulerDiscreteScheduler, {}),
            "Euler, beta": (diffusers.FlowMatchEulerDiscreteScheduler, {"use_beta_sigmas": True}),
            "DPM++ 2M": (diffusers.DPMSolverMultistepScheduler, FLOW_SIGMAS),
            "UniPC": (diffusers.UniPCMultistepScheduler, FLOW_SIGMAS),
        },
        {"max_sequence_length": 16},
    ),
}


def latents(pipe: Any, scheduler: Any, prompts: Sequence[str], steps: int, call: Mapping[str, Any]) -> Tensor:
    """The final latents of all prompts, each from its own noise."""
    pipe.scheduler = scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    given = {**call, "guidance_scale": GUIDANCE, "num_inference_steps": steps, "output_type": "latent"}
    found: Tensor = pipe(list(prompts), generator=generators, **given).images
    return found


def pictures(pipe: Any, found: Tensor) -> Tensor:
    """What the pipeline's decoder makes of latents: [B, H, W, 3] in [0, 1]."""
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0.0
    with torch.no_grad():
        decoded: Tensor = pipe.vae.decode(found / pipe.vae.config.scaling_factor + shift).sample
    return (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)


@style.applied()
def draw(name: str, prompts: Sequence[str], out: Path) -> None:
    """One picture: a column a number of steps and the converged one, a row for diffusers and one for ours."""
    model, pipe = MODELS[name], load_pipeline(name=name)
    config = pipe.scheduler.config
    setting = recommended(NoiseSchedule.from_config(config).kind, GUIDANCE)
    ours = create_scheduler(setting.solver, config, grid=setting.grid, **setting.options)
    peers = {label: kind.from_config(config, **options) for label, (kind, options) in model.peers.items()}
    exact = latents(pipe, create_scheduler("dpmpp-2m", config, stable_guidance=None), prompts, 150, model.call)

    def best(schedulers: Mapping[str, Any], steps: int) -> tuple[float, str, Tensor]:
        """The least error, whose it is, and its latents."""
        found = {label: latents(pipe, one, prompts, steps, model.call) for label, one in schedulers.items()}
        errors = {label: float((end - exact).square().mean().sqrt() / exact.std()) for label, end in found.items()}
        label = min(errors, key=errors.__getitem__)
        return errors[label], label, found[label]

    figure = Figure(figsize=(11, 3.0), layout="constrained")
    what = "error to the converged latents: lower is better"
    figure.suptitle(f"{model.title}, guidance {GUIDANCE:g}, {len(prompts)} prompts; {what}", fontsize=11)
    axes = figure.subplots(2, len(STEPS) + 1)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    rows = (("diffusers\n(its best)", peers, style.PEERS[0]), ("fastsample", {"": ours}, style.RECOMMENDED))
    for line, (label, schedulers, colour) in zip(axes, rows, strict=True):
        line[0].set_ylabel(label, fontsize=11, color=colour, rotation=0, ha="right", va="center")
        for axis, steps in zip(line, STEPS, strict=False):
            error, sampler, found = best(schedulers, steps)
            show(axis, pictures(pipe, found[:SHOWN]))
            axis.set_xlabel(f"{sampler} {error:.3f}", fontsize=10.5, color=colour)
        show(line[-1], pictures(pipe, exact[:SHOWN]))
    for axis, head in zip(axes[0], [*(f"{steps} steps" for steps in STEPS), "converged"], strict=True):
        axis.set_title(head, fontsize=11, loc="center", weight="normal")
    figure.savefig(out / model.file, dpi=110)


def show(axis: Any, images: Tensor) -> None:
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
    for name in MODELS:
        draw(name, captions, out)


if __name__ == "__main__":
    typer.run(main)
