"""`fastsample bench`: solvers side by side, ours and diffusers' own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from fastsample.cli import common
from fastsample.cli.bench_decoding import BenchDecoding

SOLVERS = ["ddim", "dpmpp-2m", "hb-dpmpp-2m", "unipc", "ghvb:order=1,beta=0.8"]
PEERS = ["DDIM", "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"]


def bench(
    model: Annotated[str | None, typer.Option(help="Diffusers folder or hub id; default: the bundled model.")] = None,
    solver: Annotated[
        list[str] | None, typer.Option(help="name or name:key=value,..; repeat. Default: five.")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(help="A diffusers scheduler class (or 'none'); repeat.")] = None,
    steps: Annotated[str, typer.Option(help="Comma-separated step counts.")] = "5,8,10,20",
    grid: Annotated[list[str] | None, typer.Option(help="Time grid for our solvers; repeat to compare.")] = None,
    tgate: Annotated[
        str | None,
        typer.Option(help="Comma-separated gate steps: each solver also with T-GATE, and with guidance cut."),
    ] = None,
    parallel: Annotated[
        str | None,
        typer.Option(help="Comma-separated iterations (picard, replay, secant, anderson): each solver also so."),
    ] = None,
    window: Annotated[
        str, typer.Option(help="With --parallel: comma-separated counts of steps evaluated at once, or all.")
    ] = "16",
    tolerance: Annotated[
        str, typer.Option(help="With --parallel: comma-separated tolerances, relative to a step's noise; 0 is exact.")
    ] = "1e-2",
    guidance: Annotated[str, typer.Option(help="Comma-separated guidance scales; 1 means none.")] = "2,7.5",
    prompts: Annotated[str, typer.Option(help="A file of prompts, or how many held-out bundled ones.")] = "64",
    seeds: Annotated[int, typer.Option(help="Repetitions with other noise; their spread is reported.")] = 2,
    batch: Annotated[int, typer.Option(help="Prompts a batch.")] = 64,
    repeats: Annotated[int, typer.Option(help="Timed runs a case; the median is reported.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and the files below.")] = Path("results/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Also write and print results.json.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Also write results.csv.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Also write results.md.")] = False,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot", help="Also write pareto.png and images.png; with --parallel, sweeps.png and strip.png."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on from what results.jsonl holds.")] = True,
    decode: Annotated[
        bool, typer.Option("--decode", help="Commit rules of the bundled language model, in place of all this.")
    ] = False,
    rule: Annotated[
        list[str] | None, typer.Option(help="With --decode: name or name:key=value,..; repeat. Default: all.")
    ] = None,
    problems: Annotated[int, typer.Option(help="With --decode: how many, of the test split.")] = 512,
) -> None:
    """Compare samplers: error to the converged solution, prompt fidelity, Frechet distance, seconds.

    With --decode, ways to decode a language model: right answers, wholly right texts, forwards, seconds.

    Every result is appended to results.jsonl as it comes; the same command goes on after an interruption.
    """
    if decode:
        run = BenchDecoding(rule or [], model, problems, batch, dtype, device, out, resume)
        run(as_json=as_json, markdown=markdown, plot=plot)
        return
    from fastsample.bench.cases import make_cases

    added = [*read_gates(tgate), *read_iterations(parallel, window, tolerance)]
    arms = read_arms(solver or SOLVERS, PEERS if peer is None else peer, grid or [None], added)
    scales = common.numbers(guidance, "guidance", float)
    common.check_least(seeds=seeds, batch=batch, repeats=repeats)
    cases = make_cases(arms, common.numbers(steps, "steps", int), scales, range(seeds))
    common.check_device(device, dtype)
    common.check_model(model)
    texts = read_prompts(prompts, model)
    folder = common.writable_folder(out)
    common.quiet()
    pipe = common.load_model(model, device, dtype)
    runner, results = execute(pipe, texts, folder, cases, batch, repeats, resume, judge=model is None)
    write(results, folder, as_json=as_json, csv=csv, markdown=markdown)
    if plot:
        draw(runner, results, arms, cases, folder)


def read_gates(steps: str | None) -> list[dict[str, Any]]:
    """T-GATE at each of `steps`, without caching (guidance cut) and with it."""
    from fastsample.bench.accelerations import Gate

    numbers = common.numbers(steps, "tgate", int) if steps else []
    return [{"gate": Gate(step, cache)} for step in numbers for cache in (False, True)]


def read_iterations(names: str | None, windows: str, tolerances: str) -> list[dict[str, Any]]:
    """Every parallel iteration at every window and tolerance."""
    from fastsample.bench.accelerations import Parallel

    sizes = [None if text.strip() == "all" else common.numbers(text, "window", int)[0] for text in windows.split(",")]
    values = common.numbers(tolerances, "tolerance", float)
    return [
        {"parallel": Parallel(name.strip(), size, value)}
        for name in (names.split(",") if names else [])
        for size in sizes
        for value in values
    ]


def read_arms(solvers: list[str], peers: list[str], grids: list[Any], added: list[dict[str, Any]]) -> list[Any]:
    """Our solvers on each grid, plain and with each acceleration of `added`, then the peers."""
    from fastsample.bench.cases import parse_arm

    plain = [parse_arm(text, grid=grid) for grid in grids for text in solvers]
    ours = [replace(arm, **acceleration) for arm in plain for acceleration in [{}, *added]]
    return ours + [parse_arm(text, peer=True) for text in peers if text != "none"]


def read_prompts(prompts: str, model: str | None) -> list[str]:
    """A number of captions of held-out scenes for the bundled model, else a file's lines."""
    if not prompts.lstrip("-").isdigit():
        return common.read_prompts([], Path(prompts))
    if model is not None:
        raise ValueError(f"--prompts = {prompts}: with --model give a file of prompts, one a line")
    if int(prompts) < 2:
        raise ValueError(f"--prompts = {prompts}: give a file, or a number of at least 2")
    from fastsample.demo.scenes import sample_scenes

    return [scene.caption for scene in sample_scenes(int(prompts), seed=7, held_out=True)]


def execute(
    pipe: Any, texts: list[str], folder: Path, cases: list[Any], batch: int, repeats: int, resume: bool, judge: bool
) -> tuple[Any, list[dict[str, Any]]]:
    """Run the cases with a progress bar; the runner, and the results of these cases."""
    from fastsample.bench.record import Record
    from fastsample.bench.runner import Bench

    record = Record(folder / "results.jsonl", resume=resume)
    runner = Bench(pipe, texts, record, batch, repeats, judge)
    done = sum(runner.result(case) is not None for case in cases)

    def name(result: dict[str, Any]) -> str:
        return f"{result['arm']}, {result['steps']} steps, guidance {result['guidance']:g}"

    common.progress_over(runner.run(cases), total=len(cases), done=done, describe=name)
    return runner, [found for case in cases if (found := runner.result(case)) is not None]


def write(results: list[dict[str, Any]], folder: Path, *, as_json: bool, csv: bool, markdown: bool) -> None:
    """The table on the terminal and the files that were asked for."""
    from rich.console import Console

    from fastsample.bench import report

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


def draw(runner: Any, results: list[dict[str, Any]], arms: list[Any], cases: list[Any], folder: Path) -> None:
    """The Pareto plot, and a grid of images at the fewest steps and the highest guidance."""
    from fastsample.bench import plots, report

    plots.pareto(report.summarise(results), folder / "pareto.png")
    steps, guidance = min(case.steps for case in cases), max(case.guidance for case in cases)
    shown = runner.prompts[:8]
    small = type(runner)(runner.pipe, shown, runner.record, batch=len(shown))
    images = {arm.label: small.images(arm, steps, guidance, 0) for arm in arms}
    plots.image_grid(images, folder / "images.png", shown)
    print(f"plots: {folder / 'pareto.png'}, {folder / 'images.png'} ({steps} steps, guidance {guidance:g})")
    parallel = [arm for arm in arms if arm.parallel]
    if parallel:
        from fastsample.bench import sweeps

        most = max(case.steps for case in cases)
        sweeps.draw(small, parallel, most, guidance, folder)
        print(f"plots: {folder / 'sweeps.png'}, {folder / 'strip.png'} ({most} steps at once, guidance {guidance:g})")
