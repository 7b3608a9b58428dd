"""Solvers side by side: what to compare, the runs, the tables and pictures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsample.bench import report
from fastsample.bench.accelerations import Gate, Parallel
from fastsample.bench.album import PROMPTS, Album
from fastsample.bench.cases import Arm, Case, make_cases, parse_arm, recommended_arm
from fastsample.bench.estimate import Clock
from fastsample.bench.peers import DEFAULT
from fastsample.bench.record import Record, Result
from fastsample.bench.runner import Bench
from fastsample.cli import arguments
from fastsample.cli.command import on_interrupt
from fastsample.cli.engines import common, tables
from fastsample.cli.engines.progress import following
from fastsample.cli.engines.report import put_page
from fastsample.cli.files import place, place_texts
from fastsample.demo.bundled import GUIDANCE
from fastsample.demo.scenes import Scene, sample_scenes
from fastsample.names.peers import peer_names
from fastsample.pipelines.request import default_guidance
from fastsample.pipelines.tgate import TGate
from fastsample.wording import counted

__all__ = ["Arms", "draw", "execute", "make_cases", "make_runner", "read_gates", "read_iterations", "read_prompts"]

SOLVERS = ("ddim", "dpmpp-2m", "unipc")
"""What the recommended setting is compared with by default, on the model's own grid."""
SCALES = {"text_to_image": [GUIDANCE, 7.5], "flow_text_to_image": [GUIDANCE]}
"""Guidance scales of the bundled models."""


def read_gates(steps: str | None, counts: Sequence[int]) -> list[dict[str, Any]]:
    """T-GATE at each of `steps`, without caching (guidance cut) and with it; each closes in the longest run."""
    numbers = arguments.numbers(steps, "tgate", int) if steps else []
    for number in numbers:
        TGate(number).policy.check_steps(max(counts))
    return [{"gate": Gate(step, cache)} for step in numbers for cache in (False, True)]


def read_iterations(names: str | None, windows: str, tolerances: str, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Every parallel iteration at every window and tolerance, where some run has more than one step."""
    if names and max(counts) == 1:
        raise ValueError(
            f"--parallel = {names!r} with --steps = 1: there is nothing to make at once; give more steps"
        )
    sizes = [
        None if text.strip() == "all" else arguments.numbers(text, "window", int)[0] for text in windows.split(",")
    ]
    arguments.check_once(sizes, "window")
    arguments.check_once([name.strip() for name in names.split(",")] if names else [], "parallel")
    values = arguments.numbers(tolerances, "tolerance", float)
    return [
        {"parallel": Parallel(name.strip(), size, value)}
        for name in (names.split(",") if names else [])
        for size in sizes
        for value in values
    ]


def read_scales(guidance: str | None, model: str | None) -> list[float] | None:
    """The guidance scales; None for the pipeline's own."""
    if guidance is not None:
        return arguments.numbers(guidance, "guidance", float)
    return SCALES.get(common.bundled_name(model) or "")


@dataclass(frozen=True)
class Arms:
    """What to compare: arms as they were asked for, None for those that suit the model, once it is known."""

    ours: list[Arm] | None
    peers: list[Arm] | None
    grids: Sequence[str | None]
    added: list[dict[str, Any]]

    @classmethod
    def read(
        cls,
        solvers: list[str] | None,
        peers: list[str] | None,
        given: list[str] | None,
        added: list[dict[str, Any]],
    ) -> Arms:
        """Our solvers on each grid and the peers; ValueError for unknown ones, and for what is there twice."""
        arguments.check_once(given or [], "grid")
        grids: Sequence[str | None] = given or [None]
        ours = [parse_arm(text, grid=grid) for grid in grids for text in solvers or SOLVERS]
        if peers is not None and "none" in peers and len(peers) > 1:
            raise ValueError(f"--peer = {', '.join(map(repr, peers))}: none goes alone; leave it out")
        named = None if peers is None else [parse_arm(text, peer=True) for text in peers if text != "none"]
        asked = [*ours[: len(solvers or [])], *(named or [])]  # on one grid
        arguments.check_once([arm.label.removesuffix("Scheduler") for arm in asked], "solver" if solvers else "peer")
        if added and all(arm.recipe for arm in ours):
            raise ValueError("--tgate or --parallel with recipes alone: they say that themselves; change their files")
        if given and not any(arm.grid in given for arm in ours):
            said = ", ".join(map(repr, given))
            raise ValueError(f"--grid = {said}: it does nothing for these solvers; leave it out")
        return cls(_accelerated(ours, added) if solvers else None, named, grids, added)

    def cases(
        self, runner: Bench, steps: Sequence[int], scales: Sequence[float] | None, seeds: Sequence[int]
    ) -> list[Case]:
        """All combinations, each arm rehearsed; ValueError for one that was asked for and cannot run.

        Of the default ones, such an arm is left out, with a line on stderr.
        """
        guidances = scales or [default_guidance(runner.pipe, runner.request.negative_prompt)]
        ours, peers = self.ours, self.peers
        if ours is None:
            plain = [parse_arm(text, grid=grid) for grid in self.grids for text in SOLVERS]
            ours = _accelerated([*plain, recommended_arm(runner.kind, max(guidances), max(steps))], self.added)
        if peers is None:
            own = type(runner.pipe.scheduler).__name__.removesuffix("Scheduler")
            names = dict.fromkeys([own, *DEFAULT[runner.kind]])
            peers = [Arm(name, peer=True) for name in names if f"{name}Scheduler" in peer_names()]
        cases = make_cases(list(dict.fromkeys([*ours, *peers])), steps, guidances, seeds)
        left_out = set()
        for arm, case in {case.arm: case for case in cases}.items():
            try:
                runner.check(arm, case.steps, case.guidance)
            except ValueError as error:
                if arm.recipe:
                    raise ValueError(f"{arm.label}: {error}") from None
                if self.peers is not None or not arm.peer:
                    raise
                left_out.add(arm)
                print(f"left out: {arm.label}: {error}", file=sys.stderr)
        return [case for case in cases if case.arm not in left_out]


def _accelerated(arms: Sequence[Arm], added: Sequence[dict[str, Any]]) -> list[Arm]:
    """Each arm plain, and with each acceleration of `added`; recipes as they are."""
    return [replace(arm, **acceleration) for arm in arms for acceleration in [{}, *([] if arm.recipe else added)]]


def read_prompts(prompts: str, model: str | None) -> list[str]:
    """A number of captions of held-out scenes for the bundled model, else a file's lines: for it captions too."""
    bundled = common.bundled_name(model) is not None
    if not re.fullmatch(r"-?[0-9]+", prompts):
        texts = arguments.read_prompts([], Path(prompts))
        if bundled:
            _check_captions(texts, prompts)
        return texts
    if not bundled:
        raise ValueError(f"--prompts = {prompts}: with --model give a file of prompts, one a line")
    (count,) = arguments.numbers(prompts, "prompts", int)
    if count < 2:
        raise ValueError(f"--prompts = {prompts}: give a file, or a number of at least 2")
    arguments.check_counts(prompts=count)
    return [scene.caption for scene in sample_scenes(count, seed=7, held_out=True)]


def _check_captions(texts: Sequence[str], file: str) -> None:
    """Raise ValueError for prompts of which the bundled models' images cannot be judged."""
    if len(texts) < 2:
        raise ValueError(f"--prompts = {file!r} has 1 prompt: a Frechet distance needs at least 2")
    for text in texts:
        try:
            Scene.from_caption(text)
        except ValueError as error:
            raise ValueError(f"--prompts = {file!r}, which the bundled model is judged by: {error}") from None


def make_runner(pipe: Any, texts: list[str], folder: Path, *, resume: bool, **settings: Any) -> Bench:
    """The benchmark, on what the folder holds of an earlier run."""
    record, album = Record(folder / "results.jsonl", resume=resume), Album(folder, resume=resume)
    return Bench(pipe, texts, record, album=album, **settings)


def execute(runner: Bench, cases: list[Case]) -> list[Result]:
    """Run the cases, with an estimate and progress on stderr; the results of these cases."""
    todo = [case for case in cases if runner.result(case) is None]
    with (
        on_interrupt(runner.record.kept),
        common.out_of_memory("try --batch 1, --offload model, --dtype bfloat16, or a smaller size"),
    ):
        clock = Clock(runner.expected(todo))
        if todo:
            every = counted(len(cases), "case")
            print(f"{len(todo)} of {every} to run, about {clock.left}", file=sys.stderr, flush=True)

        def name(result: Result) -> str:
            clock.tick()
            error = result["latent_rms"]
            told = "diverged" if error is None else f"error {error:.3f}"
            steps = counted(result["steps"], "step")
            case = f"{result['arm']}, {steps}, guidance {result['guidance']:g}, seed {result['seed']}"
            return f"{case}: {told}, {result['seconds']:.2f} s; {clock.left} left"

        done = len(cases) - len(todo)
        for _ in following(runner.run(cases), total=len(cases), done=done, describe=name, timed=True):
            pass
    return [found for case in cases if (found := runner.result(case)) is not None]


def best_label(runner: Bench, cases: Sequence[Case]) -> str:
    """The recommended arm's label, at the highest guidance scale and the most steps, as :meth:`Arms.cases` has it."""
    guidance, steps = (max(getattr(case, name) for case in cases) for name in ("guidance", "steps"))
    return recommended_arm(runner.kind, guidance, steps).label


def write(results: list[Result], folder: Path, *, best: str, as_json: bool, csv: bool, markdown: bool) -> None:
    """The table on the terminal and the files that were asked for."""
    rows = report.summarise(results)
    title = "error: RMS of the latents to the converged solution, relative to their spread"
    if best in {row.arm for row in rows}:
        title += f"; recommended: {best}"
    tables.show(report.rich_table(rows, title))
    texts = {
        "results.csv": report.csv_text(rows) if csv else None,
        "results.md": report.markdown(rows) if markdown else None,
        "results.json": json.dumps(results, indent=1) + "\n" if as_json else None,
    }
    print(f"results: {', '.join(map(str, [folder / 'results.jsonl', *place_texts(folder, texts)]))}")


def write_page(runner: Bench, results: list[Result], cases: list[Case], path: Path) -> None:
    """The page; pictures of results that an earlier version left without are drawn first."""
    from fastsample.bench.page import samplers  # Matplotlib: only for --report

    missing = [case for case in cases if not runner.pictured(case)]
    if missing:
        print(f"pictures of {len(missing)} results are missing: drawing them", file=sys.stderr, flush=True)
        small = replace(runner, prompts=runner.prompts[:PROMPTS], album=None)
        for case in missing:
            runner.keep_pictures(case, small.images(case.arm, case.steps, case.guidance, case.seed))
    page = samplers.page(results, runner.album, best=best_label(runner, cases))
    print(f"page: {put_page(page, path)}")


def draw(runner: Bench, results: list[Result], cases: list[Case], folder: Path) -> None:
    """The Pareto plot, and pictures at the highest guidance and the fewest steps that some arm needs there."""
    from fastsample.bench import grids, plots, style, sweeps  # Matplotlib: only for --plot

    rows = report.summarise(results)
    guidance = max(case.guidance for case in cases)
    panel = [row for row in rows if row.guidance == guidance]
    steps = report.enough_steps(panel)
    arms = list(dict.fromkeys(case.arm for case in cases))
    best = best_label(runner, cases)
    chosen = report.foremost(panel, keep=best)
    names, colours = {row.arm: row.title for row in rows}, style.colours(chosen, keep=best)
    shown = runner.prompts[:PROMPTS]
    small = replace(runner, prompts=shown, batch=min(runner.batch, len(shown)), album=None)
    images = [grids.Row("reference: the converged solution", [*small.converged_images(guidance, 0)])]
    for arm in arms:
        if arm.label in chosen:
            name = f"recommended: {names[arm.label]}" if arm.label == best else names[arm.label]
            images.append(grids.Row(name, [*small.images(arm, steps, guidance, 0)], colours[arm.label]))
    title = f"{counted(steps, 'step')}, guidance {guidance:g}, seed 0"
    drawn = {
        "pareto.png": lambda path: plots.pareto(rows, path, keep=best),
        "images.png": lambda path: grids.image_grid(images, path, shown, title),
    }
    parallel = [arm for arm in arms if arm.parallel]
    if parallel:
        most = max(case.steps for case in cases)
        own = [row for row in panel if row.steps == most]
        drawn |= sweeps.trace(small, parallel, most, guidance)
        drawn["rounds.png"] = lambda path: plots.rounds(own, path, f"{counted(most, 'step')}, guidance {guidance:g}")
    files = [place(folder, name, write, again=False) for name, write in drawn.items()]
    print(f"plots: {', '.join(map(str, files))} ({title})")
