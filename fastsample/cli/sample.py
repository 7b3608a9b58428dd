"""`fastsample sample`: images or videos from prompts, with any solver."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cli import arguments
from fastsample.cli.command import check_switches
from fastsample.cli.files import output_folder


def sample(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file with one prompt a line. Under torchrun or accelerate launch each process samples a part."
        ),
    ] = None,
    model: arguments.Model = None,
    solver: Annotated[
        str | None,
        typer.Option(
            help="A solver of `fastsample solvers`, name or name:key=value,..; a sampler as AUTOMATIC1111 or ComfyUI "
            "call it ('DPM++ 2M Karras', dpmpp_2m); a scheduler class of diffusers; or a recipe's file (.json). "
            "Default: the recommended one."
        ),
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="A solver option key=value; repeat for several.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps: calls of the network. Default: the recipe's, else 20.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Time grid; default: the model's own spacing, or the recommended solver's.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale, 1 means none (in Z-Image 0); default: the pipeline's own (bundled models: 3). "
            "Where a network was distilled with guidance, its scale, or with --negative-prompt true guidance."
        ),
    ] = None,
    negative_prompt: arguments.NegativePrompt = None,
    height: arguments.Height = None,
    width: arguments.Width = None,
    frames: arguments.Frames = None,
    images: Annotated[
        int, typer.Option("--images", "--num-images", help="Images per prompt: seeds --seed, --seed + 1, ..")
    ] = 1,
    call: arguments.Call = None,
    tgate: Annotated[int | None, typer.Option(help="T-GATE's gate step; default: no gate.")] = None,
    parallel: Annotated[
        str | None, typer.Option(help="Make many steps at once: picard, replay, secant or anderson.")
    ] = None,
    window: Annotated[int, typer.Option(help="With --parallel: steps evaluated at once.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="With --parallel: accepted error, relative to a step's noise; 0 is exact.")
    ] = 1e-2,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; repeat for several images per prompt.")] = None,
    dtype: arguments.Dtype = None,
    device: arguments.Device = None,
    offload: arguments.Offload = "none",
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("results/sample"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line per image.")] = False,
) -> None:
    """Sample images (.png) or videos (.webp) with any diffusers pipeline, and a contact sheet of them.

    Files are numbered by prompt and seed; of a second run with the same ones they get -2, -3, .., and none is
    overwritten. Wrong input, and a pipeline that draws nothing from prompts, is one line before any evaluation.

    Example: fastsample sample --prompt "a large red circle at the left on a white background" --steps 10
    """
    check_switches(ctx, needs={"window": "parallel", "tolerance": "parallel"})
    arguments.check_counts(images=images, steps=steps, window=window)
    seeds = [first + number for first in seed or [0] for number in range(images)]
    arguments.check_seeds(seeds)
    arguments.check_scales(guidance=guidance)
    from fastsample.cli.engines import common  # torch and diffusers: not for --help
    from fastsample.cli.engines import sample as engine

    arm = engine.check(solver, option or [], grid, steps, guidance, seeds)
    count = engine.steps_of(arm, steps)
    if parallel and count == 1:
        raise ValueError(f"--parallel = {parallel!r} with --steps = 1: there is nothing to make at once; give more")
    gate = engine.check_gate(tgate, count, arm)
    iteration = engine.check_iteration(parallel, window, tolerance, tgate, arm)
    request = common.read_request(height, width, frames, negative_prompt, call)
    device, dtype = common.placement(model, device, dtype, offload)
    common.check_model(model)
    texts = engine.read_texts(prompt, prompts, model)
    with output_folder(out) as folder:
        common.quiet()
        pipe = common.load_model(model, device, dtype, offload)
        sampler = engine.Sampler(pipe, arm, grid, request, count, engine.scale(guidance, model), gate, iteration)
        made = engine.generate(sampler, texts, seeds, folder)
        engine.report(made, folder, as_json)
