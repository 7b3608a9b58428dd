"""What the names of other programs give here, and how each solver behaves: the tables of benchmarks/samplers.md.

    python scripts/sampler_tables.py          # seconds, no model

Names by program with the solver, its options and the grid, or the reason of a refusal. For every solver: the order of
convergence claimed (which tests measure), model calls a step, and the spread of Gaussian data of std .5 on Stable
Diffusion's and a flow model's schedule, at 10 and 20 steps of the karras grid and of the flow model's own.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastsample.names.programs import A1111, COMFYUI, GRID_LABELS, REFUSED, RES4LYF, SD_CPP, NamedSampler
from fastsample.schedules import NoiseSchedule, time_grid
from fastsample.solvers import available, build_table
from fastsample.tables.gaussian import gaussian_spread

PROGRAMS: dict[str, Mapping[str, NamedSampler]] = {
    "AUTOMATIC1111, Forge": A1111,
    "ComfyUI": COMFYUI,
    "stable-diffusion.cpp": SD_CPP,
    "RES4LYF": RES4LYF,
}
SD = NoiseSchedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
FLOW = NoiseSchedule.flow()


def said(options: Mapping[str, object]) -> str:
    """Options as a caller writes them."""
    return ", ".join(f"{key}={value}" for key, value in options.items())


def names() -> list[str]:
    """A table of every name."""
    lines = [
        "| program | name | solver | options (on flow models too) | grid where none is said |",
        "|---|---|---|---|---|",
    ]
    for program, table in PROGRAMS.items():
        for name, named in table.items():
            flow = f" ({said(named.on_flow)})" if named.on_flow else ""
            grid = f"{named.grid}{', one step more, the last but one left out' if named.discard_penultimate else ''}"
            lines.append(f"| {program} | `{name}` | `{named.solver}` | {said(named.options)}{flow} | {grid} |")
    lines += ["", "| refused | why |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in REFUSED.items()]
    lines += ["", "| schedule | grid |", "|---|---|"]
    return [*lines, *(f"| {label} | `{grid}` |" for label, grid in GRID_LABELS.items())]


def spreads(name: str) -> list[str]:
    """What a solver makes of Gaussian data whose spread is .5, at 10 and 20 steps on each schedule."""
    cells = []
    for schedule, grid, prediction in ((SD, "karras", "epsilon"), (FLOW, "linspace", "flow_prediction")):
        for steps in (10, 20):
            if schedule is FLOW and not available()[name].flow:
                cells.append("-")
                continue
            times = time_grid(grid, schedule, steps)
            table = build_table(name, schedule, times, prediction_type=prediction)
            cells.append(f"{gaussian_spread(table):.3f}")
    return cells


def solvers() -> list[str]:
    """A table of every solver."""
    lines = [
        "| solver | order | calls a step | noise | VP karras, 10 steps | 20 | flow, 10 | 20 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, solver in available().items():
        facts = [str(solver.claimed_order()), str(solver.evaluations), "yes" if solver.stochastic else ""]
        lines.append("| " + " | ".join([f"`{name}`", *facts, *spreads(name)]) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(["### Names", "", *names(), "", "### Solvers on Gaussian data of spread .5", "", *solvers()]))
