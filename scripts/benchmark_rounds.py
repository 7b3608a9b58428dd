"""What a round of parallel sampling costs outside the network: our schedulers' tables beside diffusers' own steps.

    python scripts/benchmark_rounds.py

The bundled pipeline with a network that returns its input, 50 steps, guidance 3, one image, at tolerance 0. The
median round, from one call of the network to the next, with the pipeline's own loop, in CPU time of one thread, which
a busy machine changes least; over repeated calls in turn, the median and the range.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import diffusers
import numpy as np
import torch
import typer

import fastsample
from fastsample import ParallelSampler
from fastsample.bench.report import markdown_table
from fastsample.demo.bundled import load_pipeline

SCHEDULERS = {
    "ddim": (fastsample.DDIMScheduler, diffusers.DDIMScheduler),
    "dpmpp-2m": (fastsample.DPMSolverScheduler, diffusers.DPMSolverMultistepScheduler),
    "unipc": (fastsample.UniPCScheduler, diffusers.UniPCMultistepScheduler),
}
FIRST = 3
"""Rounds that are left out: the plain step, and those with checks of their own."""


class Still(diffusers.UNet2DConditionModel):  # type: ignore[misc]
    """A network that returns its input, and notes when it is called."""

    def forward(self, sample: torch.Tensor, timestep: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        self.called.append(time.process_time())
        return (sample,)


def round_of(pipe: Any, scheduler: Any, window: int) -> float:
    """The median round in milliseconds."""
    pipe.scheduler, pipe.unet.called = scheduler, []
    sampler = ParallelSampler(pipe, window=window, tolerance=0.0, strides="none")
    generator = torch.Generator().manual_seed(0)
    sampler("a red circle", num_inference_steps=50, guidance_scale=3.0, output_type="latent", generator=generator)
    if sampler.run.fallback:
        raise RuntimeError(sampler.run.fallback)
    return 1e3 * float(np.median(np.diff(pipe.unet.called)[FIRST:]))


def main(windows: str = "8,16,32", repeats: int = 5) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    pipe: Any = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.__class__ = Still
    config, rows = pipe.scheduler.config, []
    for name, window in itertools.product(SCHEDULERS, map(int, windows.split(","))):
        found = [
            [round_of(pipe, kind.from_config(config), window) for kind in SCHEDULERS[name]] for _ in range(repeats)
        ]
        cells = [f"{np.median(own):.1f} ({min(own):.1f}-{max(own):.1f})" for own in zip(*found, strict=True)]
        rows.append([name, str(window), *cells])
    print(markdown_table(["ms a round", "window", "by the table", "by diffusers' steps"], rows))


if __name__ == "__main__":
    typer.run(main)
