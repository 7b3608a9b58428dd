"""`fastsample bench`: solvers side by side, ours and diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cli import arguments

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
    batch: Annotated[int, typer.Option(help="Prompts per batch.")] = 64,
    repeats: Annotated[int, typer.Option(help="Timed runs per case; the median is reported.")] = 1,
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
    from fastsample.cli.engines import bench as engine  # torch and diffusers: not for --help
    from fastsample.cli.engines import bench_decoding, common

    if decode:
        run = bench_decoding.BenchDecoding(rule or [], model, problems, batch, dtype, device, out, resume)
        run(as_json=as_json, markdown=markdown, plot=plot)
        return
    added = [*engine.read_gates(tgate), *engine.read_iterations(parallel, window, tolerance)]
    arms = engine.read_arms(solver or SOLVERS, PEERS if peer is None else peer, grid or [None], added)
    scales = arguments.numbers(guidance, "guidance", float)
    arguments.check_least(seeds=seeds, batch=batch, repeats=repeats)
    cases = engine.make_cases(arms, arguments.numbers(steps, "steps", int), scales, range(seeds))
    common.check_device(device, dtype)
    common.check_model(model)
    texts = engine.read_prompts(prompts, model)
    folder = arguments.writable_folder(out)
    common.quiet()
    pipe = common.load_model(model, device, dtype)
    runner, results = engine.execute(pipe, texts, folder, cases, batch, repeats, resume, judge=model is None)
    engine.write(results, folder, as_json=as_json, csv=csv, markdown=markdown)
    if plot:
        engine.draw(runner, results, arms, cases, folder)
