"""The solvers and the time grids, listed: in 80 columns, on a terminal and in a pipe alike."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from fastsample.names.programs import A1111, COMFYUI, GRID_LABELS, REFUSED, RES4LYF, SD_CPP
from fastsample.schedules.grids import FIXED_GRIDS, GRIDS, grid_names, grid_options
from fastsample.solvers import Solver, available
from fastsample.solvers.registry import nearest
from fastsample.wording import counted

WIDTH = 80


def report(name: str | None = None, *, details: bool = False, names: bool = False, as_json: bool = False) -> None:
    """Print all, or those whose names hold `name`. Raises ValueError where none does."""
    found = available()
    if name is not None:
        found = {known: solver for known, solver in found.items() if name.lower() in known}
        if not found:
            near = ", ".join(nearest(name, available())) or "`fastsample solvers`"
            raise ValueError(f"name = {name!r} is in no solver's name: did you mean {near}?")
    if as_json:
        rows = [{**properties(solver), "references": solver.references} for solver in found.values()]
        print(json.dumps({"solvers": rows, "grids": grid_names(), "names": programs()}, indent=2))
    elif names:
        print("\n".join(named()))
    elif details or name is not None:
        print("\n\n".join(map(in_full, found.values())))
        if name is None:
            print("\n" + "\n".join(grids_in_full()))
    else:
        print("\n".join(in_short(found)))


def properties(solver: Solver) -> dict[str, Any]:
    """What a solver declares, and what follows from its rule."""
    return {
        "name": solver.name,
        "order": solver.claimed_order(),
        "evaluations_per_step": solver.evaluations,
        "predictions": solver.space,
        "stochastic": solver.stochastic,
        "onto_clean": solver.onto_clean,
        "flow": solver.flow,
        "options": solver.options,
        "summary": solver.summary,
    }


def programs() -> dict[str, list[str]]:
    """The samplers of other programs, by the program."""
    tables = {"AUTOMATIC1111, Forge": A1111, "ComfyUI": COMFYUI, "stable-diffusion.cpp": SD_CPP, "RES4LYF": RES4LYF}
    return {program: list(table) for program, table in tables.items()}


def in_short(found: Mapping[str, Solver]) -> list[str]:
    """A line a solver, cut to the width after its name, and the grids' names."""
    width = max(map(len, found))
    lines = ["Order of convergence, model calls a step, ~ where steps draw noise:", ""]
    for name, solver in found.items():
        head = f"{name:{width}} {solver.claimed_order()} {solver.evaluations} {'~' if solver.stochastic else ' '} "
        lines.append(head + textwrap.shorten(solver.summary, WIDTH - len(head), placeholder=" .."))
    return [
        *lines,
        "",
        *paragraph("grids of any model:", GRIDS),
        *paragraph("grids with levels of their own:", FIXED_GRIDS),
        "",
        "`fastsample solvers NAME` says all of one, --details of all; --names lists what",
        "other programs call them, which --solver takes too.",
    ]


def in_full(solver: Solver) -> str:
    """All that is known of a solver, a few lines."""
    onto = "full order" if solver.onto_clean == "full" else solver.onto_clean
    facts = [
        f"order {solver.claimed_order()}",
        f"{counted(solver.evaluations, 'model call')} a step",
        f"{solver.space} predictions",
        "stochastic" if solver.stochastic else "deterministic",
        f"onto sigma = 0: {onto}",
        "any model" if solver.flow else "VP models alone",
    ]
    options = [f"{key}={value}" for key, value in solver.options.items()]
    return "\n".join(
        [
            solver.name,
            *wrapped(solver.summary),
            *wrapped("; ".join(facts)),
            *wrapped("options: " + (", ".join(options) or "none")),
            *wrapped("references: " + ", ".join(solver.references)),
        ]
    )


def grids_in_full() -> list[str]:
    """A paragraph a grid: its options and the kinds of models that it is for."""
    lines = ["grids"]
    for name in grid_names():
        options = ", ".join(f"{key}={value:g}" for key, value in grid_options(name).items())
        kinds = ", ".join(FIXED_GRIDS[name].kinds) if name in FIXED_GRIDS else "any model"
        lines += wrapped(f"{name}: {kinds}" + (f"; {options}" if options else ""))
    return lines


def named() -> list[str]:
    """The samplers by program, the schedules, and what is refused."""
    lines: list[str] = []
    for program, known in programs().items():
        lines += paragraph(f"{program}:", known)
    return [
        *lines,
        *paragraph("schedules, after a sampler:", GRID_LABELS),
        *paragraph("refused, with a reason:", REFUSED),
    ]


def paragraph(title: str, names: Iterable[str]) -> list[str]:
    """Names in lines of the width, none of them broken."""
    return [title, *wrapped(", ".join(name.replace(" ", "\0") for name in names))]


def wrapped(text: str) -> list[str]:
    """Lines of the width, indented; no word is broken, and none parted at a "\\0"."""
    lines = textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in lines]
