"""`fastsample sample`: images from prompts, with any solver."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cli import arguments


def sample(
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; repeat for several.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file with one prompt a line. Under torchrun or accelerate launch each process samples a part."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Diffusers folder or hub id; default: the bundled model.")] = None,
    solver: Annotated[
        str,
        typer.Option(help='A solver, see `fastsample solvers`, or what other programs call one: "DPM++ 2M Karras".'),
    ] = "dpmpp-2m",
    option: Annotated[list[str] | None, typer.Option(help="A solver option key=value; repeat for several.")] = None,
    steps: Annotated[int, typer.Option(help="Steps: calls of the network.")] = 20,
    grid: Annotated[str | None, typer.Option(help="Time grid; default: the model's own spacing.")] = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 means none.")] = 5.0,
    tgate: Annotated[int | None, typer.Option(help="T-GATE's gate step; default: no gate.")] = None,
    parallel: Annotated[
        str | None, typer.Option(help="Make many steps at once: picard, replay, secant or anderson.")
    ] = None,
    window: Annotated[int, typer.Option(help="With --parallel: steps evaluated at once.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="With --parallel: accepted error, relative to a step's noise; 0 is exact.")
    ] = 1e-2,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; repeat for several images per prompt.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("results/sample"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a line per image.")] = False,
) -> None:
    """Sample images and write them with a contact sheet.

    Example: fastsample sample --solver ghvb --prompt "a large red circle at the left on a white background"
    """
    from fastsample.cli.engines import common  # torch and diffusers: not for --help
    from fastsample.cli.engines import sample as engine

    seeds = seed or [0]
    arm = engine.check(solver, option or [], grid, steps, guidance, seeds)
    gate = engine.check_gate(tgate, steps, guidance)
    iteration = engine.check_iteration(parallel, window, tolerance, tgate)
    common.check_device(device, dtype)
    common.check_model(model)
    texts = engine.read_texts(prompt, prompts, model)
    folder = arguments.writable_folder(out)
    common.quiet()
    pipe = common.load_model(model, device, dtype)
    made = engine.generate(pipe, arm, texts, seeds, steps, guidance, folder, gate, iteration)
    engine.report(made, folder, as_json)
