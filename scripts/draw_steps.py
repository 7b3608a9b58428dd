"""What the bundled models draw in few steps, by diffusers' best sampler and the recommended one, for the README.

python scripts/draw_steps.py    # writes docs/images/steps_vp.png and steps_flow.png; 2 minutes on 2 cores

Held-out prompts, guidance 3, one noise a prompt for all samplers. An image's error is the RMS of its final latents to
those of a converged run from the same noise, relative to their spread. diffusers' best is, at each number of steps,
the one with the least mean error of the schedulers that `fastsample bench` compares with. The first prompts are
shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from fastsample import NoiseSchedule, create_scheduler
from fastsample.bench import grids, style
from fastsample.bench.metrics import decode
from fastsample.bench.naming import CLASSES
from fastsample.bench.peers import DEFAULT, peer_scheduler
from fastsample.demo.bundled import load_pipeline
from fastsample.demo.scenes import sample_scenes
from fastsample.names.recommended import recommended

OUT = Path(__file__).parents[1] / "docs" / "images"
GUIDANCE, STEPS, SHOWN = 3.0, (5, 8, 20), 4
FILES = {"text_to_image": "steps_vp.png", "flow_text_to_image": "steps_flow.png"}
TITLES = {"text_to_image": "Stable Diffusion", "flow_text_to_image": "Stable Diffusion 3 (flow matching)"}
CALLS: dict[str, dict[str, Any]] = {"text_to_image": {}, "flow_text_to_image": {"max_sequence_length": 16}}


@dataclass(frozen=True)
class Drawn:
    """Latents by a sampler, and each image's error."""

    name: str
    latents: Tensor
    errors: Tensor

    @property
    def told(self) -> str:
        """Its name over its mean error with the standard error."""
        return f"{self.name}\n{self.errors.mean():.3f} ± {self.errors.std() / math.sqrt(len(self.errors)):.3f}"


def latents(pipe: Any, scheduler: Any, prompts: Sequence[str], steps: int, **call: Any) -> Tensor:
    """The final latents of all prompts, each from its own noise."""
    pipe.scheduler = scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    call |= {"guidance_scale": GUIDANCE, "num_inference_steps": steps, "output_type": "latent"}
    found: Tensor = pipe(list(prompts), generator=generators, **call).images
    return found


def draw(name: str, prompts: Sequence[str], out: Path) -> None:
    """One picture: a block a number of steps with a column a sampler, and the converged one."""
    pipe, call = load_pipeline(name=name), CALLS[name]
    config = pipe.scheduler.config
    kind = NoiseSchedule.from_config(config).kind
    setting = recommended(kind, GUIDANCE)
    exact = latents(pipe, create_scheduler("dpmpp-2m", config, stable_guidance=None), prompts, 150, **call)

    def run(label: str, scheduler: Any, steps: int) -> Drawn:
        found = latents(pipe, scheduler, prompts, steps, **call)
        errors = (found - exact).square().flatten(1).mean(1).sqrt() / exact.std()
        return Drawn(label, found, errors)

    def column(drawn: Drawn, colour: str) -> grids.Row:
        return grids.Row(drawn.told, [*decode(pipe, drawn.latents[:SHOWN])], colour)

    blocks = []
    for steps in STEPS:
        peers = [run(f"diffusers\n{CLASSES[one]}", peer_scheduler(one, config), steps) for one in DEFAULT[kind]]
        best = min(peers, key=lambda drawn: float(drawn.errors.mean()))
        ours = run(
            "fastsample", create_scheduler(setting.solver, config, grid=setting.grid, **setting.options), steps
        )
        blocks.append((f"{steps} steps", [column(best, style.PEERS[0]), column(ours, style.RECOMMENDED)]))
    title = f"{TITLES[name]}, guidance {GUIDANCE:g}: diffusers' best and the recommended setting"
    peers = ", ".join(CLASSES[one] for one in DEFAULT[kind])
    note = (
        f"The same noise for all, of seeds 0 to {len(prompts) - 1}. Numbers: error to the converged "
        f"latents (lower is better), mean ± standard error over {len(prompts)} "
        f"prompts. diffusers' best: the least of {peers} at that number of steps."
    )
    reference = grids.Row("reference: converged", [*decode(pipe, exact[:SHOWN])])
    grids.side_by_side(blocks, reference, prompts[:SHOWN], out / FILES[name], title, note)


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
