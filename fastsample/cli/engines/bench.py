"""Solvers side by side: what to compare, the runs, the tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from fastsample.bench import report
from fastsample.bench.accelerations import Gate, Parallel
from fastsample.bench.cases import Arm, Case, make_cases, parse_arm
from fastsample.bench.record import Record, Result
from fastsample.bench.runner import Bench
from fastsample.cli import arguments
from fastsample.cli.engines import common
from fastsample.demo.scenes import sample_scenes

__all__ = ["draw", "execute", "make_cases", "read_arms", "read_gates", "read_iterations", "read_prompts", "write"]


def read_gates(steps: str | None) -> list[dict[str, Any]]:
    """T-GATE at each of `steps`, without caching (guidance cut) and with it."""
    numbers = arguments.numbers(steps, "tgate", int) if steps else []
    return [{"gate": Gate(step, cache)} for step in numbers for cache in (False, True)]


def read_iterations(names: str | None, windows: str, tolerances: str) -> list[dict[str, Any]]:
    """Every parallel iteration at every window and tolerance."""
    sizes = [
        None if text.strip() == "all" else arguments.numbers(text, "window", int)[0] for text in windows.split(",")
    ]
    values = arguments.numbers(tolerances, "tolerance", float)
    return [
        {"parallel": Parallel(name.strip(), size, value)}
        for name in (names.split(",") if names else [])
        for size in sizes
        for value in values
    ]


def read_arms(
    solvers: list[str], peers: list[str], grids: Sequence[str | None], added: list[dict[str, Any]]
) -> list[Arm]:
    """Our solvers on each grid, plain and with each acceleration of `added`, then the peers."""
    plain = [parse_arm(text, grid=grid) for grid in grids for text in solvers]
    ours = [replace(arm, **acceleration) for arm in plain for acceleration in [{}, *added]]
    return ours + [parse_arm(text, peer=True) for text in peers if text != "none"]


def read_prompts(prompts: str, model: str | None) -> list[str]:
    """A number of captions of held-out scenes for the bundled model, else a file's lines."""
    if not prompts.lstrip("-").isdigit():
        return arguments.read_prompts([], Path(prompts))
    if model is not None:
        raise ValueError(f"--prompts = {prompts}: with --model give a file of prompts, one a line")
    if int(prompts) < 2:
        raise ValueError(f"--prompts = {prompts}: give a file, or a number of at least 2")
    return [scene.caption for scene in sample_scenes(int(prompts), seed=7, held_out=True)]


def execute(
    pipe: Any, texts: list[str], folder: Path, cases: list[Case], batch: int, repeats: int, resume: bool, judge: bool
) -> tuple[Bench, list[Result]]:
    """Run the cases with a progress bar; the runner, and the results of these cases."""
    record = Record(folder / "results.jsonl", resume=resume)
    runner = Bench(pipe, texts, record, batch, repeats, judge)
    done = sum(runner.result(case) is not None for case in cases)

    def name(result: Result) -> str:
        return f"{result['arm']}, {result['steps']} steps, guidance {result['guidance']:g}"

    common.progress_over(runner.run(cases), total=len(cases), done=done, describe=name)
    return runner, [found for case in cases if (found := runner.result(case)) is not None]


def write(results: list[Result], folder: Path, *, as_json: bool, csv: bool, markdown: bool) -> None:
    """The table on the terminal and the files that were asked for."""
    rows = report.summarise(results)
    title = "error: RMS of the latents to the converged solution, relative to their spread"
    wide = any("gmacs" in row.metrics or "rounds" in row.metrics for row in rows)
    Console(width=max(Console().width, 190 if wide else 122)).print(report.rich_table(rows, title))
    if csv:
        (folder / "results.csv").write_text(report.csv_text(rows))
    if markdown:
        (folder / "results.md").write_text(report.markdown(rows))
    if as_json:
        text = json.dumps(results, indent=1)
        (folder / "results.json").write_text(text + "\n")
    print(f"results: {folder / 'results.jsonl'}")


def draw(runner: Bench, results: list[Result], arms: list[Arm], cases: list[Case], folder: Path) -> None:
    """The Pareto plot, and a grid of images at the fewest steps and the highest guidance."""
    from fastsample.bench import plots, sweeps  # Matplotlib: only for --plot

    plots.pareto(report.summarise(results), folder / "pareto.png")
    steps, guidance = min(case.steps for case in cases), max(case.guidance for case in cases)
    shown = runner.prompts[:8]
    small = Bench(runner.pipe, shown, runner.record, batch=len(shown))
    images = {arm.label: small.images(arm, steps, guidance, 0) for arm in arms}
    plots.image_grid(images, folder / "images.png", shown)
    print(f"plots: {folder / 'pareto.png'}, {folder / 'images.png'} ({steps} steps, guidance {guidance:g})")
    parallel = [arm for arm in arms if arm.parallel]
    if parallel:
        most = max(case.steps for case in cases)
        sweeps.draw(small, parallel, most, guidance, folder)
        print(f"plots: {folder / 'sweeps.png'}, {folder / 'strip.png'} ({most} steps at once, guidance {guidance:g})")
