"""`fastsample bench`: solvers side by side, ours and diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cache import cache_folder
from fastsample.cli import arguments
from fastsample.cli.command import check_switches
from fastsample.cli.files import check_page, output_folder

DECODING = {"decode", "rule", "model", "problems", "batch", "dtype", "device", "out", "resume"}
DECODING |= {"as_json", "markdown", "plot", "report"}
"""Options that mean something with --decode; `rule` and `problems` only there."""


def bench(
    ctx: typer.Context,
    model: arguments.Model = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="A solver name or name:key=value,.. (grid=quadratic for its own grid), a sampler as AUTOMATIC1111 "
            "or ComfyUI call it, a scheduler class of diffusers, or a recipe's file (.json), which runs at its own "
            "steps; repeat. Default: the recommended one and a few."
        ),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="A diffusers scheduler class (or 'none'); repeat. Default: the model's own and a few."),
    ] = None,
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
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated guidance scales; 1 means none (in Z-Image 0). Default: the pipeline's own; 3,7.5 "
            "for the bundled text_to_image, 3 for flow_text_to_image. Where a network was distilled with guidance, "
            "its scale, or with --negative-prompt true guidance."
        ),
    ] = None,
    negative_prompt: arguments.NegativePrompt = None,
    height: arguments.Height = None,
    width: arguments.Width = None,
    frames: arguments.Frames = None,
    call: arguments.Call = None,
    prompts: Annotated[str, typer.Option(help="A file of prompts, or how many held-out bundled ones.")] = "64",
    seeds: Annotated[
        int, typer.Option(help="Images of each prompt, with other noise; the spread over them is reported.")
    ] = 2,
    batch: Annotated[int | None, typer.Option(help="Prompts per batch; default: 64, or 1 with --model.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed runs per case; the median is reported.")] = 1,
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    offload: arguments.Offload = "none",
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and the files below.")] = Path("results/bench"),
    as_json: Annotated[bool, typer.Option("--json", help="Also write results.json.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Also write results.csv.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Also write results.md.")] = False,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot",
            help="Also write pareto.png and images.png; with --parallel, sweeps.png, strip.png and rounds.png.",
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="Also write a page.html that needs nothing else: words, table, plots, pictures of all."),
    ] = None,
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

    The converged solution is 200 steps of DPM-Solver++ 3M (on flow models on the quadratic grid) by the same pipeline
    from the same noise. The error is the RMS of the latents to its latents, relative to their spread: of latents as
    the pipeline's own decoder gets them, unpacked and scaled, all frames of a video together; of the pixels where
    there is no decoder. In bfloat16 and float16 rounding sets a floor to it. Seconds are without decoding.

    With --decode, ways to decode a language model: right answers, wholly right texts, forwards, seconds.

    Every result is appended to results.jsonl as it comes, and pictures of the first 8 prompts go to pictures/; the
    same command goes on after an interruption. Other files of a run with other results are numbered, and none is
    overwritten. Wrong input, and a pipeline that cannot be benchmarked, is one line before any evaluation.
    """
    others = [param.name for param in ctx.command.params if param.name not in DECODING]
    needs = {"window": "parallel", "tolerance": "parallel", "rule": "decode", "problems": "decode"}
    check_switches(ctx, excludes={"decode": others}, needs=needs)
    arguments.check_counts(seeds=seeds, batch=batch, repeats=repeats, problems=problems)
    from fastsample.cli.engines import bench as engine  # torch and diffusers: not for --help
    from fastsample.cli.engines import bench_decoding, common

    if decode:
        run = bench_decoding.BenchDecoding(
            rule or [],
            model,
            problems,
            64 if batch is None else batch,
            dtype or "float32",
            device or "cpu",
            out,
            resume,
        )
        run(as_json=as_json, markdown=markdown, plot=plot, report=report)
        return
    counts = arguments.numbers(steps, "steps", int)
    arguments.check_counts(steps=max(counts))
    added = [*engine.read_gates(tgate, counts), *engine.read_iterations(parallel, window, tolerance, counts)]
    arms = engine.Arms.read(solver, peer, grid, added)
    scales = engine.read_scales(guidance, model)
    arguments.check_scales(guidance=max(scales or [0]))
    engine.make_cases([], counts, scales or [], range(seeds))
    request = common.read_request(height, width, frames, negative_prompt, call)
    device, dtype = common.placement(model, device, dtype, offload)
    common.check_model(model)
    texts = engine.read_prompts(prompts, model)
    if report is not None:
        check_page(report)
    with output_folder(out, alone=True) as folder, output_folder(cache_folder(), "$FASTSAMPLE_CACHE"):
        common.quiet()
        pipe = common.load_model(model, device, dtype, offload)
        bundled = common.bundled_name(model) is not None
        runner = engine.make_runner(
            pipe,
            texts,
            folder,
            batch=batch or (64 if bundled else 1),
            repeats=repeats,
            resume=resume,
            judge=bundled,
            request=request,
        )
        cases = arms.cases(runner, counts, scales, range(seeds))
        results = engine.execute(runner, cases)
        engine.write(
            results, folder, best=engine.best_label(runner, cases), as_json=as_json, csv=csv, markdown=markdown
        )
        if plot:
            engine.draw(runner, results, cases, folder)
        if report is not None:
            engine.write_page(runner, results, cases, report)
