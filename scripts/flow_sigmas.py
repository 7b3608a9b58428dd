"""The sigmas that flow-matching pipelines really use: diffusers' Euler and its options beside our solvers and grids.

    python scripts/flow_sigmas.py [--steps 6] [flux stable_diffusion_3 qwen_image wan ltx sana]

Tiny pipelines of the tests, built from diffusers' own classes; each line is read off the scheduler after a whole run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from diffusers import FlowMatchEulerDiscreteScheduler

import fastsample as fs

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from zoo import ZOO

NAMES = ["flux", "stable_diffusion_3", "qwen_image", "wan", "ltx", "sana"]
GRIDS = ("karras", "beta", "quadratic", "log-snr")


def schedulers(own: Any) -> Iterator[tuple[str, Any]]:
    """Every scheduler shown, by what it is called here."""
    config = own.config
    yield type(own).__name__.removesuffix("Scheduler"), type(own).from_config(config)
    if isinstance(own, FlowMatchEulerDiscreteScheduler):
        for grid in ("karras", "beta"):
            yield f"  its {grid} option", type(own).from_config(config, **{f"use_{grid}_sigmas": True})
    yield "UniPC, no grid", fs.UniPCScheduler.from_config(config)
    yield "HB, no grid", fs.HeavyBallScheduler.from_config(config)
    for grid in GRIDS:
        yield f"HB {grid}", fs.HeavyBallScheduler.from_config(config, timestep_grid=grid)
    for name in ("DPM++ 2M Karras", "Euler Beta"):
        yield name, fs.scheduler_from_name(name, config)


def main(
    names: Annotated[list[str] | None, typer.Argument(help="pipelines of tests/zoo.py")] = None, steps: int = 6
) -> None:
    for name in names or NAMES:
        entry = replace(ZOO[name], steps=steps)
        pipe = entry.build()
        print(f"{type(pipe).__name__}, {steps} steps")
        for label, scheduler in schedulers(pipe.scheduler):
            pipe.scheduler = scheduler
            entry.sample(pipe)
            print(f"  {label:26}", *(f"{sigma:.3f}" for sigma in scheduler.sigmas.tolist()))


if __name__ == "__main__":
    typer.run(main)
