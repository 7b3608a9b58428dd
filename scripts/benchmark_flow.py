"""Error of flow-matching schedulers on a mixture, ours beside diffusers', against the exact ODE: a Markdown table.

    python scripts/benchmark_flow.py [--shift 3]

Each scheduler lays out its own grid from a config of FlowMatchEulerDiscreteScheduler, as `from_config` makes it: the
one whose last step onto clean data is several times as long in log-SNR as the one before. Ours stand there without a
grid, and with "trailing" and "quadratic", with orders that are stable without guidance, as there is none. 512 points
of a mixture in two dimensions, three seeds: mean and spread of the RMS error to SciPy's DOP853.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import diffusers
import torch
import typer

import fastsample as fs
from fastsample.bench.report import markdown_table
from fastsample.testing import run_scheduler

STEPS = (5, 8, 10, 20, 30, 50)
SEEDS = (0, 1, 2)
Make = Callable[[dict[str, Any]], Any]


def flow_sigmas(cls: Any) -> Make:
    """A VP class of diffusers with its flow options set by hand."""
    return lambda config: cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=config["shift"])


def ours(solver: str, grid: str | None = None, **options: Any) -> Make:
    return lambda config: fs.create_scheduler(solver, config, grid=grid, **options)


SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Euler": ("euler", {}),
    "2M": ("dpmpp-2m", {}),
    "UniPC": ("unipc", {}),
    "HB": ("hb-dpmpp-2m", {}),
    "GHVB of order 2": ("ghvb", {"order": 2}),
    "DEIS": ("deis", {}),
}
SCHEDULERS: dict[str, Make] = {
    "diffusers Euler": diffusers.FlowMatchEulerDiscreteScheduler.from_config,
    "diffusers DPM++ 2M": flow_sigmas(diffusers.DPMSolverMultistepScheduler),
    "diffusers UniPC": flow_sigmas(diffusers.UniPCMultistepScheduler),
    **{
        f"{name}, {grid or 'no grid'}": ours(solver, grid, stable_guidance=1.0, **options)
        for grid in (None, "trailing", "quadratic")
        for name, (solver, options) in SOLVERS.items()
    },
}


def main(shift: Annotated[float, typer.Option(help="The model's static shift.")] = 3.0) -> None:
    """Print the table."""
    warnings.simplefilter("ignore")  # diffusers warns of options that it reads anew
    config = dict(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift).config)
    schedule = fs.NoiseSchedule.from_config(config)
    mixture = fs.GaussianMixture.random(components=5, dims=2, std=0.25, seed=1)
    model = mixture.model(schedule, "flow_prediction")
    starts = [torch.randn(512, 2, generator=torch.Generator().manual_seed(seed)).double() for seed in SEEDS]
    ends = [mixture.reference(schedule, x, schedule.noise_time, schedule.clean_time) for x in starts]

    def cell(make: Make, steps: int) -> str:
        errors = []
        for x, exact in zip(starts, ends, strict=True):
            found = run_scheduler(make(config), lambda x, t: model(x, float(t)), x, steps)
            errors.append(float((found - exact).square().mean().sqrt()))
        return f"{statistics.mean(errors):.4f} ± {statistics.stdev(errors):.4f}"

    rows = [[name, *(cell(make, steps) for steps in STEPS)] for name, make in SCHEDULERS.items()]
    print(markdown_table([f"shift {shift:g}", *map(str, STEPS)], rows))


if __name__ == "__main__":
    typer.run(main)
