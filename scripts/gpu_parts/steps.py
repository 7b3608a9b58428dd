"""A solver's step as the sampling loop makes it: what it costs the host, by part, and from what size it pays."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import torch
from fastsample_kernels import WeightedStep, linear_step, use_backend

import fastsample as fs
from fastsample.sampling import Runner
from fastsample.sampling.fused import FusedSteps
from gpu_parts import Part, Record, Setting
from gpu_parts.cases import random
from gpu_parts.timing import DEVICE, host_times, seconds, spread

STEPS = 20
SD15, SDXL = (1, 4, 64, 64), (1, 4, 128, 128)


def table_of(solver: str, steps: int = STEPS) -> fs.Table:
    return fs.build_table(solver, fs.NoiseSchedule.linear_vp(), np.linspace(1, 0.02, steps + 1))


def host(setting: Setting) -> Iterator[Record]:
    """DPM-Solver++ 2M in bfloat16, from the launch outward; then the torch path, and diffusers' own scheduler."""
    x = random(*SD15, dtype=torch.bfloat16)
    h = random(*SD15)
    table = table_of("dpmpp-2m")
    lowered, launch = table.lowered, WeightedStep()
    weights = tuple(lowered.dense()[5].flatten().tolist())
    inputs, dtypes = [x, x, h], [x.dtype, h.dtype]
    matrix = torch.from_numpy(lowered.dense()).float().to(DEVICE)
    index = torch.tensor([5], device=DEVICE)
    fused = FusedSteps(lowered, DEVICE, torch.float32)
    launch(inputs, weights, dtypes)
    runs: dict[str, Callable[[], Any]] = {}
    for bound in launch._bound.values():
        if bound is not None:  # nothing is, in the interpreter
            out, given = tuple(t.data_ptr() for t in (x.clone(), h.clone())), tuple(t.data_ptr() for t in inputs)
            runs["the bound launch"] = functools.partial(bound, x.get_device(), out, given, weights)
    runs |= {
        "checked, with its outputs": lambda: launch(inputs, weights, dtypes),
        "FusedSteps.run": lambda: fused.run(5, x, x, (h,), None),
        "Runner.step": _middle("triton", table, x),
        "scheduler.step": _scheduler("triton", x),
        "linear_step, through torch.library": lambda: linear_step(inputs, matrix, index, dtypes=dtypes),
        "Runner.step by torch": _middle("torch", table, x),
        "scheduler.step by torch": _scheduler("torch", x),
        "diffusers, DPMSolverMultistepScheduler.step": _theirs(x),
    }
    calls = 1 if setting.smoke else 100
    with use_backend("triton"):
        for name, run in runs.items():
            yield {"part": name, **spread(host_times(run, setting.repeats, calls), "us")}


def _middle(backend: Any, table: fs.Table, x: torch.Tensor) -> Callable[[], Any]:
    """A step from the middle of a run, over and over."""
    with use_backend(backend):
        runner = Runner(table)
        for index in range(5):
            runner.step(index, x, x)
    held = runner.stored

    def step() -> None:
        runner.stored = held
        with use_backend(backend):
            runner.step(5, x, x)

    return step


def _scheduler(backend: Any, x: torch.Tensor) -> Callable[[], Any]:
    made = fs.create_scheduler("dpmpp-2m", {"beta_schedule": "scaled_linear"})
    return _steps(made, x, backend)


def _theirs(x: torch.Tensor) -> Callable[[], Any]:
    return _steps(diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear"), x, "torch")


def _steps(scheduler: Any, x: torch.Tensor, backend: Any) -> Callable[[], Any]:
    """The steps of runs of 1000 steps, one a call; a run is laid out anew when it has ended."""

    def calls() -> Iterator[None]:
        while True:
            scheduler.set_timesteps(1000, device=DEVICE)
            for t in scheduler.timesteps:
                with use_backend(backend):
                    scheduler.step(x, t, x, return_dict=False)
                yield

    return functools.partial(next, calls())


def crossover(setting: Setting) -> Iterator[Record]:
    """Whole runs of 20 steps, nothing between them, until the device is done: both backends in turn."""
    sizes = (96,) if setting.smoke else [1 << power for power in range(12, 25, 2)]
    for solver, dtype, size in itertools.product(
        ("ddim", "dpmpp-2m", "unipc"), (torch.float32, torch.bfloat16), sizes
    ):
        x, noise, table = random(1, size, dtype=dtype), random(1, size), table_of(solver)
        found: dict[str, list[float]] = {"triton": [], "torch": []}
        for _ in range(max(1, setting.repeats // 3)):
            for backend in found:
                with use_backend(backend):  # type: ignore[arg-type]
                    once = functools.partial(_run, table, x, noise)
                    found[backend].append(1e6 / STEPS * statistics.median(seconds(once, 1 if setting.smoke else 3)))
        record: Record = {"solver": solver, "dtype": str(dtype).removeprefix("torch."), "elements": size}
        record |= {**spread(found["triton"], "us"), **spread(found["torch"], "torch_us")}
        yield record | {"torch_to_ours": round(record["torch_us"] / record["us"], 2)}


def _run(table: fs.Table, x: torch.Tensor, noise: torch.Tensor) -> None:
    runner = Runner(table)
    for index in range(STEPS):
        x = runner.step(index, x, x, noise)


HOST = Part("host", "What does a step cost the host, by part?", 25, host, ("part", "us"))
CROSSOVER = Part(
    "crossover",
    "From what size on is a fused step faster than torch's, back to back?",
    40,
    crossover,
    ("solver", "dtype", "elements", "us", "torch_us", "torch_to_ours"),
)
