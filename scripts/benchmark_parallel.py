"""Sweeps of the parallel iterations on analytic mixtures, side by side: JSON, and Markdown tables.

    python scripts/benchmark_parallel.py --out benchmarks/parallel_mixture

All steps at once. A cell has the sweeps that an image takes, mean over the images; in brackets those of the slowest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm.auto import tqdm

from fastsample import GaussianMixture, NoiseSchedule, build_table, integrate, integrate_parallel, time_grid
from fastsample.bench.context import environment
from fastsample.bench.metrics import rms
from fastsample.bench.report import markdown_table
from fastsample.fixed_point.updates import UPDATES

MIXTURES = {
    "2 dimensions, 5 components": {"components": 5, "dims": 2, "std": 0.25},
    "2 dimensions, 8 narrow components": {"components": 8, "dims": 2, "std": 0.05},
    "16 dimensions, 20 components, close": {"components": 20, "dims": 16, "std": 0.8},
    "64 dimensions, 50 components, close": {"components": 50, "dims": 64, "std": 1.2},
}
MODELS = {
    "VP": (NoiseSchedule.from_config({"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}), "epsilon"),
    "flow": (NoiseSchedule.flow(3.0), "flow_prediction"),
}
SOLVERS = ("ddim", "dpmpp-2m")
STEPS = (25, 50, 100)
TOLERANCES = (1e-1, 1e-2, 1e-3)
IMAGES = 32


@dataclass(frozen=True)
class Cell:
    """What an iteration took; `rms` is the error to the sequential result relative to its spread."""

    mixture: str
    model: str
    solver: str
    steps: int
    iteration: str
    tolerance: float
    sweeps_mean: float
    sweeps_max: int
    evaluations: float
    rms: float


def cells(name: str, model: str, solver: str, steps: int) -> list[Cell]:
    """Every iteration and tolerance on one problem."""
    schedule, prediction = MODELS[model]
    mixture = GaussianMixture.random(**MIXTURES[name])  # type: ignore[arg-type]
    table = build_table(solver, schedule, time_grid("trailing", schedule, steps), prediction_type=prediction)
    shape = (IMAGES, mixture.means.shape[1])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    denoise = mixture.model(schedule, prediction)
    exact = integrate(table, denoise, x)
    found = []
    for iteration in UPDATES:
        for tolerance in TOLERANCES:
            sample, report = integrate_parallel(table, denoise, x, iteration=iteration, tolerance=tolerance)
            own = 1 + (np.array(report.starts) < steps).sum(0)
            error = rms(sample, exact) / float(exact.std())
            settings = (name, model, solver, steps, iteration, tolerance)
            found.append(Cell(*settings, own.mean(), int(own.max()), report.evaluations / IMAGES, error))
    return found


def markdown(found: list[Cell], model: str, solver: str) -> str:
    """Iterations by steps and tolerance, a section a mixture."""
    columns = [(steps, tolerance) for steps in STEPS for tolerance in TOLERANCES]
    header = [f"{model}, {solver}", *(f"{steps}, {tolerance:g}" for steps, tolerance in columns)]
    lines = []
    for name in MIXTURES:
        lines.append([f"*{name}*"] + [""] * len(columns))
        for iteration in UPDATES:
            own = {
                (cell.steps, cell.tolerance): f"{cell.sweeps_mean:.1f} ({cell.sweeps_max})"
                for cell in found
                if (cell.mixture, cell.model, cell.solver, cell.iteration) == (name, model, solver, iteration)
            }
            lines.append([iteration, *(own[column] for column in columns)])
    return markdown_table(header, lines)


def main(out: Annotated[Path, typer.Option(help="Folder for sweeps.json and sweeps.md.")]) -> None:
    """Run every iteration on every mixture."""
    cases = [(name, m, solver, steps) for name in MIXTURES for m in MODELS for solver in SOLVERS for steps in STEPS]
    found = [cell for case in tqdm(cases) for cell in cells(*case)]
    out.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment(), "images": IMAGES, "cells": [asdict(cell) for cell in found]}
    (out / "sweeps.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "sweeps.md").write_text("\n".join(markdown(found, m, solver) for m in MODELS for solver in SOLVERS))


if __name__ == "__main__":
    typer.run(main)
