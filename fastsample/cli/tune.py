"""`fastsample tune`: the sampler tuned for a model, as a preset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cache import cache_folder
from fastsample.cli import arguments
from fastsample.cli.command import on_interrupt
from fastsample.cli.files import output_folder


def tune(
    prompts: Annotated[Path, typer.Option(help="A file with one prompt a line: 16 and more for more than the grid.")],
    model: Annotated[str | None, typer.Option(help="Diffusers folder or hub id; default: the bundled model.")] = None,
    steps: Annotated[str, typer.Option(help="Evaluations, comma-separated: a table is tuned for each.")] = "5,8",
    guidance: Annotated[str, typer.Option(help="Guidance scales, comma-separated; 1 means none.")] = "3",
    budget: Annotated[int, typer.Option(help="Guided evaluations in all; never more are made.")] = 20_000,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; repeat for several pairs a prompt.")] = None,
    check_prompts: Annotated[
        Path | None,
        typer.Option(help="Prompts of another kind for the final check; default: a quarter of --prompts."),
    ] = None,
    objective: Annotated[str, typer.Option(help="rms, or huber, which lets no few samples rule.")] = "rms",
    solver: Annotated[str | None, typer.Option(help="The solver to tune; default: the best of several.")] = None,
    grid_only: Annotated[bool, typer.Option("--grid-only", help="Tune the grid, not the weights.")] = False,
    batch: Annotated[int, typer.Option(help="Images evaluated at once.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")] = "cpu",
    folder: Annotated[Path | None, typer.Option(help="Where the stages are kept; default: the cache.")] = None,
    out: Annotated[Path, typer.Option(help="The preset's JSON file.")] = Path("preset.json"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the preset instead of a table.")] = False,
) -> None:
    """Tune grid and weights of a sampler for a model, by forward calls, and write what was found and proved.

    An interrupted run goes on where it was. Under torchrun or accelerate launch the processes share the evaluations.

    Example: fastsample tune --prompts prompts.txt --steps 5,8 --guidance 3 --out preset.json
    """
    counts = arguments.numbers(steps, "steps", int)
    scales = arguments.numbers(guidance, "guidance", float)
    arguments.check_counts(steps=max(counts), batch=batch, budget=budget)
    arguments.check_scales(guidance=max(scales))
    arguments.check_seeds(seed or [0], most=2**63 - 1)
    if out.exists() and not out.is_file():
        raise ValueError(f"--out = {str(out)!r} is no file: give the name of one, as preset.json")
    asked = {
        "steps": tuple(counts),
        "guidance": tuple(scales),
        "seeds": tuple(seed or [0]),
        "budget": budget,
        "objective": objective,
        "solver": solver,
        "grid_only": grid_only,
        "batch": batch,
    }
    texts = arguments.read_prompts([], prompts)
    fresh = arguments.read_prompts([], check_prompts, "check-prompts") if check_prompts is not None else None
    if both := sorted(set(texts) & set(fresh or [])):
        raise ValueError(
            f"--check-prompts = {str(check_prompts)!r}: {both[0]!r} is in --prompts too; give fresh ones"
        )
    from fastsample.cli.engines import common  # torch and diffusers: not for --help
    from fastsample.cli.engines import tune as engine

    common.check_device(device, dtype)
    common.check_model(model)
    home, named = (folder, "--folder") if folder is not None else (cache_folder() / "tuning", "$FASTSAMPLE_CACHE")
    kept = f"the stages that are done are kept in {home}; the same command goes on from there"
    with output_folder(out.parent), output_folder(home, named), on_interrupt(lambda: kept):
        common.quiet()
        pipe = common.load_model(model, device, dtype)
        engine.report(engine.tuned(pipe, texts, fresh, asked, folder, out), out, as_json)
