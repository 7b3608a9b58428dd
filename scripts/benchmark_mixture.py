"""Solver error on three analytic mixtures, ours and diffusers' side by side: JSON, and a Markdown table.

    python scripts/benchmark_mixture.py --out benchmarks/mixture

Each cell is the best of four time grids; families with options are the best of those too. The JSON says which it was.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm.auto import tqdm

from fastsample import GaussianMixture, __version__
from fastsample.bench.cases import Arm
from fastsample.bench.mixture import MixtureProblem
from fastsample.bench.report import markdown_table

EVALUATIONS = (5, 6, 8, 10, 15, 20)
MIXTURES = {
    "2 dimensions, std 0.25": {"components": 5, "dims": 2, "std": 0.25, "seed": 1},
    "2 dimensions, std 0.25, two components close": {"components": 5, "dims": 2, "std": 0.25, "seed": 0},
    "16 dimensions, std 0.4": {"components": 8, "dims": 16, "std": 0.4, "seed": 0},
}
BETAS = (0.4, 0.6, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Cell:
    """The least error of a family at a number of evaluations, and the arm and grid that gave it."""

    mixture: str
    family: str
    evaluations: int
    rms: float
    arm: str
    grid: str


def arm(name: str, *, peer: bool = False, **options: object) -> Arm:
    return Arm(name, tuple(options.items()), peer=peer)


FAMILIES: dict[str, list[Arm]] = {
    "DDIM": [arm("ddim")],
    "DPM-Solver++ 2M": [arm("dpmpp-2m", solver_type=t) for t in ("midpoint", "heun")],
    "DPM-Solver++ 3M, released": [arm("dpmpp-3m")],
    "DPM-Solver++ 3M, exact": [arm("dpmpp-3m", variant="exact")],
    "DPM-Solver-3 single-step": [arm("dpm-3s"), arm("dpmpp-3s")],
    "Heun": [arm("heun")],
    "UniPC-2": [arm(n, order=2, solver_type=t) for n, t in product(("unipc", "unipc-noise"), ("bh1", "bh2"))],
    "UniPC-3": [arm(n, order=3, solver_type=t) for n, t in product(("unipc", "unipc-noise"), ("bh1", "bh2"))],
    "DEIS-3": [arm("deis", order=3)],
    "iPNDM": [arm("ipndm", order=order) for order in (2, 3, 4)],
    "Adams, variable step": [arm("adams", order=order) for order in (2, 3, 4)],
    "HB on 2M": [arm("hb-dpmpp-2m", beta=beta) for beta in BETAS],
    "GHVB, fixed weights": [arm("ghvb", order=o, beta=b) for o, b in product((1, 2, 3, 4), BETAS)],
    "GHVB, variable weights": [
        arm("ghvb", order=o, beta=b, weights="variable") for o, b in product((2, 3, 4), BETAS)
    ],
    "accelerated ODE": [arm("accelerated")],
    "DualFast on 2M": [arm("dpmpp-2m", dualfast=c) for c in (0.1, 0.2, 0.3)],
    "diffusers DPM++ 2M": [arm("DPMSolverMultistep", peer=True)],
    "diffusers DPM++ 3M": [arm("DPMSolverMultistep", peer=True, solver_order=3)],
    "diffusers UniPC-3 bh2": [arm("UniPCMultistep", peer=True, solver_order=3)],
    "diffusers DEIS-3": [arm("DEISMultistep", peer=True, solver_order=3)],
}


def main(out: Annotated[Path, typer.Option(help="Folder for mixture.json and mixture.md.")]) -> None:
    """Run every family on every mixture."""
    environment = {
        "fastsample": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    cells = []
    for name, parameters in MIXTURES.items():
        problem = MixtureProblem(GaussianMixture.random(**parameters))  # type: ignore[arg-type]
        for family, arms in tqdm(FAMILIES.items(), desc=name):
            for count in EVALUATIONS:
                found = [(error, own.label, grid) for own in arms for grid, error in problem.errors(own, count)]
                if found:
                    error, label, grid = min(found)
                    cells.append(Cell(name, family, count, error, label, grid))
    out.mkdir(parents=True, exist_ok=True)
    record = {"environment": environment, "cells": [asdict(cell) for cell in cells]}
    (out / "mixture.json").write_text(json.dumps(record, indent=1) + "\n")
    tables = (markdown(name, [cell for cell in cells if cell.mixture == name]) for name in MIXTURES)
    (out / "mixture.md").write_text("\n".join(tables))


def markdown(mixture: str, cells: list[Cell]) -> str:
    """Families by evaluations, the least error of a column in bold."""
    found = {(cell.family, cell.evaluations): cell.rms for cell in cells}
    least = {count: min(cell.rms for cell in cells if cell.evaluations == count) for count in EVALUATIONS}

    def text(family: str, count: int) -> str:
        error = found.get((family, count))
        return "" if error is None else f"**{error:.4f}**" if error == least[count] else f"{error:.4f}"

    rows = [[family, *(text(family, count) for count in EVALUATIONS)] for family in FAMILIES]
    return markdown_table([mixture, *map(str, EVALUATIONS)], rows)


if __name__ == "__main__":
    typer.run(main)
