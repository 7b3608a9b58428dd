"""Tuned tables on mixtures whose ends are known, beside all untuned samplers: a Markdown table.

    python scripts/tune_mixture.py [--kind VP]

128 points to tune on, 128 that choose, 512 fresh ones measured on; RMS error to SciPy's DOP853, as a ratio to the
best of all deterministic solvers of ours on all grids, which is chosen on the fresh points themselves.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

import fastsample as fs
from fastsample.bench.report import markdown_table
from fastsample.tuning.cell import CellTuner
from fastsample.tuning.pairs import Pairs, Purse, loss
from fastsample.tuning.problem import Problem, Start
from fastsample.tuning.screen import cells
from fastsample.tuning.stages import Stages
from fastsample.tuning.teacher import teach

COUNTS = (5, 6, 8, 10)
MIXTURES = {
    "5 components in 2 dimensions, std .25": fs.GaussianMixture.random(5, 2, 0.25, seed=1),
    "2 close components": fs.GaussianMixture(
        torch.tensor([[-0.5, 0.0], [0.5, 0.0]]).double(),
        torch.tensor([0.2, 0.2]).double(),
        torch.tensor([0.5, 0.5]).double(),
    ),
}
SCHEDULES = {
    "VP": {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    "flow": {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
}


class Exact:
    """The exact model of a mixture, as it is tuned."""

    def __init__(self, mixture: fs.GaussianMixture, schedule: fs.NoiseSchedule) -> None:
        self.mixture, self.schedule = mixture, schedule
        prediction = "flow_prediction" if schedule.kind == "flow" else "epsilon"
        first, final = schedule.node(schedule.noise_time), schedule.node(schedule.clean_time)
        self.problem, self.model = Problem(schedule, prediction, first, final), mixture.model(schedule, prediction)

    def __call__(self, samples: Tensor, times: Sequence[float]) -> Tensor:
        told = torch.tensor(times, dtype=torch.float64).repeat_interleave(samples.shape[1])
        return self.model(samples.flatten(0, 1), told).reshape(samples.shape)

    def pairs(self, count: int, seed: int, purse: Purse) -> Pairs:
        x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)).double()
        ends = self.mixture.reference(self.schedule, x, self.schedule.noise_time, self.schedule.clean_time)
        start = Start(x, self.model(x, self.schedule.noise_time))
        return Pairs(self, self.problem, start, ends, 1.0, purse)

    def ratio(self, count: int) -> tuple[str, float]:
        """What was tuned, and its error on fresh points over that of the best untuned sampler."""
        purse = Purse(10**7)
        tune = self.pairs(128, 0, purse)
        teacher = teach(self, self.problem, tune.start, self.schedule.node(self.schedule.noise_time * 5e-4), 60)
        with tempfile.TemporaryDirectory() as folder:
            tuner = CellTuner(
                count=count,
                given=tune.count,
                first=partial(first_of, tune),
                validation=self.pairs(128, 1, purse),
                teacher=teacher,
                stages=Stages(Path(folder), purse, lambda text: None),
                objective="rms",
                weights=True,
                difference=0.03,
                name="cell",
                most=purse.left,
            )
            chosen = tuner.chosen(tuner.candidates())
        fresh = self.pairs(512, 2, Purse(10**9))
        best = loss(fresh.errors([cell.linear for cell in cells(self.problem, count)]), "rms").min()
        return chosen.cell.base.solver, float(loss(fresh.errors([chosen.linear]), "rms")[0] / best)


def first_of(pairs: Pairs, count: int) -> Pairs:
    """The first `count` of the pairs."""
    start = Start(pairs.start.sample[:count], pairs.start.output[:count])
    return replace(pairs, start=start, reference=pairs.reference[:count])


def main(kind: Annotated[str, typer.Option(help="VP, flow, or both.")] = "both") -> None:
    """Print the table."""
    rows = []
    for name_of_kind, config in SCHEDULES.items():
        if kind not in (name_of_kind, "both"):
            continue
        for name, mixture in MIXTURES.items():
            found = [Exact(mixture, fs.NoiseSchedule.from_config(config)).ratio(count) for count in COUNTS]
            mean = math.exp(float(np.mean([math.log(ratio) for _, ratio in found])))
            rows.append(
                [f"{name_of_kind}, {name}", *(f"{ratio:.2f} ({solver})" for solver, ratio in found), f"{mean:.2f}"]
            )
    print(markdown_table(["evaluations", *map(str, COUNTS), "geometric mean"], rows))


if __name__ == "__main__":
    typer.run(main)
