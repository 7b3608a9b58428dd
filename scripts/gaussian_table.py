"""The spread of exact Gaussian data by solver, grid and family of models, as Markdown: where a solver is farther off
than the first-order one on the same grid.

    python scripts/gaussian_table.py [--all]

Data N(0, 0.5^2), whose every sampler is linear, so that the spread at the end is computed, not drawn; exact is 0.5. A
cell holds the spreads at 10, 20, 28, 50 steps; without --all only rows with a cell farther off than DDIM by 6 % are
printed. A stochastic solver is also let off where the first-order one of its kind is as far off.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator

import diffusers

import fastsample as fs
from fastsample.schedules import GRIDS, Node
from fastsample.solvers import available, build_table_on_nodes
from fastsample.tables.gaussian import gaussian_spread

STEPS = (10, 20, 28, 50)
STD = 0.5
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True}
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
CONFIGS = {
    "vp": SD,
    "zero snr": {**ZERO_SNR, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "flow 1": diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0).config,
    "flow 3": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config,
    "flow 12": diffusers.FlowMatchEulerDiscreteScheduler(shift=12.0).config,
    "flow dynamic": diffusers.FlowMatchEulerDiscreteScheduler(**DYNAMIC).config,
    "edm": diffusers.EDMEulerScheduler().config,
}
FIRST = {"dpm-1-sde", "dpmpp-1-sde", "dpmpp-sde", "accelerated-sde"}


def grids(family: str, grid: str | None) -> Iterator[tuple[fs.NoiseSchedule, str, tuple[Node, ...]]]:
    """The schedule, prediction type and nodes of each number of steps."""
    scheduler = fs.create_scheduler("ddim", CONFIGS[family], grid=grid)
    schedule = fs.NoiseSchedule.from_config(scheduler.config)
    for steps in STEPS:
        scheduler.set_timesteps(steps, **({"mu": 1.15} if family == "flow dynamic" else {}))
        yield schedule, schedule.output_type(scheduler.config.prediction_type), scheduler._run.grid


def spread(solver: str, schedule: fs.NoiseSchedule, prediction: str, nodes: tuple[Node, ...]) -> float:
    kind = available()[solver]
    try:
        table = build_table_on_nodes(
            solver,
            nodes,
            schedule=schedule if kind.needs_schedule else None,
            prediction_type=prediction,
            lower_final=kind.lower_final,
        )
    except ValueError:
        return float("nan")  # it says itself that it cannot
    return gaussian_spread(table, STD / schedule.data_scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="print the rows that hold too")
    everything = parser.parse_args().all
    warnings.simplefilter("ignore")
    print("| model | grid | solver | 10 | 20 | 28 | 50 |\n|---|---|---|---|---|---|---|")
    cells = wrong = 0
    for family in CONFIGS:
        for grid in (None, *GRIDS):
            laid = list(grids(family, grid))
            euler = [spread("ddim", *each) for each in laid]
            sde = [spread("dpmpp-1-sde", *each) for each in laid]
            if everything:
                print(f"| {family} | {grid or 'own'} | ddim |", " | ".join(f"{value:.3f}" for value in euler), "|")
            for name, solver in available().items():
                found = [spread(name, *each) for each in laid]
                bounds = [abs(value - STD) + 0.06 * STD for value in euler]
                if solver.stochastic:
                    bounds = [max(b, abs(value - STD) + 0.06 * STD) for b, value in zip(bounds, sde, strict=True)]
                bad = [abs(value - STD) > bound for value, bound in zip(found, bounds, strict=True)]
                cells += len(bad)
                wrong += sum(bad)
                if any(bad) or everything:
                    shown = [f"**{v:.3f}**" if b else f"{v:.3f}" for v, b in zip(found, bad, strict=True)]
                    print(f"| {family} | {grid or 'own'} | {name} |", " | ".join(shown), "|")
    print(f"\n{wrong} of {cells} cells are farther off than first order and 6 %.")


if __name__ == "__main__":
    main()
