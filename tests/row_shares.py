"""Run by every process of tests/test_parallel_processes.py: images, their rows shared; a tuning; a command."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import diffusers
import torch
from pipelines import quiet, stable_diffusion
from zoo import ZOO

import fastsample as fs
from fastsample.pipelines.counting import count


def tuned(out: str) -> None:
    """Tune, and keep the preset and the rows that this process evaluated."""
    pipe = quiet(stable_diffusion())
    prompts = [f"a small red circle {number}" for number in range(6)]
    rows = []
    pipe.unet.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    preset = fs.tune(pipe, prompts, steps=(2,), guidance=(2.0,), budget=1800, folder=f"{out}-stages")
    torch.save({"preset": preset.to_json(), "rows": sum(rows)}, f"{out}.{torch.distributed.get_rank()}")


def sampled(case: str, out: str) -> None:
    """Sample, and keep the image and what this process evaluated for it."""
    inputs = {"num_inference_steps": 10, "output_type": "latent"}
    if case == "controlnet":
        pipe = ZOO["stable_diffusion_controlnet"].build()
        inputs |= ZOO["stable_diffusion_controlnet"].inputs()
    else:
        pipe = quiet(stable_diffusion())
        pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
        inputs |= {"prompt": "a small red circle", "height": 8, "width": 8, "guidance_scale": 3.0}
    sampler = fs.ParallelSampler(pipe, window=5, tolerance=0.0, distributed=True)
    rank = torch.distributed.get_rank()
    seed = rank if case == "seeds" else 0
    with count(pipe, 1) as ledger:
        try:
            image = sampler(**inputs, generator=torch.Generator().manual_seed(seed)).images
        except ValueError as error:
            image, sampler.run.fallback = None, str(error)
    run = sampler.run
    found = {"image": image, "rows": ledger.rows, "sweeps": run.sweeps, "fallback": run.fallback}
    torch.save({**found, "evaluated": sum(report.evaluations for report in run.reports)}, f"{out}.{rank}")


def printed(command: list[str], out: str) -> None:
    """Run `fastsample` as a command, and keep what this process prints."""
    sys.argv = ["fastsample", *command]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        runpy.run_module("fastsample", run_name="__main__")
    Path(f"{out}.{torch.distributed.get_rank()}").write_text(text.getvalue())


def main(folder: str, *command: str) -> None:
    """All cases one after the other, as starting the processes takes longer than any; `command` is the last."""
    for case in ("guided", "controlnet", "seeds"):
        sampled(case, f"{folder}/{case}")
    tuned(f"{folder}/tune")
    printed(list(command), f"{folder}/command")


if __name__ == "__main__":
    main(*sys.argv[1:])
