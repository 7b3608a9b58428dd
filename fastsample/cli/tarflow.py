"""`fastsample tarflow`: samples of a TarFlow, a plan to draw them faster, and a benchmark of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cli import arguments
from fastsample.cli.command import Command, check_switches
from fastsample.cli.files import output_folder

app = typer.Typer(
    help="TarFlow: sample, plan parallel decoding (GS-Jacobi), measure it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NEEDS = {"attention_temperature": "guidance"}

Model = Annotated[
    str | None, typer.Option(help="Pipeline folder, hub id, or an authors' .pth file; default: the bundled digits.")
]
Guidance = Annotated[float, typer.Option(help="Guidance, 0 is none.")]
Temperature = Annotated[float, typer.Option(help="Attention temperature of the unlabelled pass.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("sample", cls=Command)
def sample(
    ctx: typer.Context,
    labels: Annotated[str | None, typer.Option(help="Class labels; default: each class once.")] = None,
    count: Annotated[int, typer.Option(help="Images per label.")] = 1,
    guidance: Guidance = 0.0,
    attention_temperature: Temperature = 1.0,
    method: Annotated[
        str | None, typer.Option(help="sequential, jacobi or gs-jacobi; default: the model's plan, if it has one.")
    ] = None,
    denoise: Annotated[bool, typer.Option(help="Take the noise of training away.")] = True,
    seed: Annotated[int, typer.Option(help="Seed; every image has a stream of its own.")] = 0,
    model: Model = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("results/tarflow"),
    as_json: Json = False,
) -> None:
    """Draw images of class labels and write them with a contact sheet.

    Example: fastsample tarflow sample --labels 3,7 --count 4 --guidance 1
    """
    check_switches(ctx, needs=NEEDS)
    classes = arguments.numbers(labels, "labels", int) if labels else None
    arguments.check_counts(count=count)
    arguments.check_seeds([seed])
    from fastsample.cli.engines import tarflow as engine  # torch and diffusers: not for --help

    arguments.check_scales(guidance=guidance, attention_temperature=attention_temperature)
    engine.check(guidance, attention_temperature, method)
    with output_folder(out) as folder:
        pipe = engine.load(model, device, dtype)
        how = {
            "guidance": guidance,
            "attention_temperature": attention_temperature,
            "method": method,
            "denoise": denoise,
        }
        engine.write_images(pipe, classes, count, seed, folder, how, as_json)


@app.command("plan", cls=Command)
def make_plan(
    ctx: typer.Context,
    residual: Annotated[float, typer.Option(help="Largest relative difference to sequential images.")] = 1e-4,
    batch: Annotated[int, typer.Option(help="Images at once, as you will sample.")] = 16,
    guidance: Guidance = 0.0,
    attention_temperature: Temperature = 1.0,
    data: Annotated[
        Path | None,
        typer.Option(help="safetensors with images [n, c, h, w] in [-1, 1], and labels; default: own samples."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timings of each candidate; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the samples that are measured.")] = 0,
    model: Model = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Annotated[Path | None, typer.Option(help="Folder of the plan; default: beside --model.")] = None,
    as_json: Json = False,
) -> None:
    """Choose start, chunks and sweep limits of every block by measured cost, and save them as JSON.

    Example: fastsample tarflow plan --batch 16 --residual 1e-4 --out results/tarflow
    """
    check_switches(ctx, needs=NEEDS, excludes={"data": ("batch", "seed")})
    arguments.check_counts(batch=batch, repeats=repeats)
    arguments.check_seeds([seed])
    from fastsample.cli.engines import tarflow as engine  # torch and diffusers: not for --help

    arguments.check_scales(guidance=guidance, attention_temperature=attention_temperature)
    engine.check(guidance, attention_temperature, residual=residual)
    images, labels = engine.read_data(data)
    with output_folder(engine.folder_of_plan(model, out)) as folder:
        pipe = engine.load(model, device, dtype)
        sampling = {"batch": batch, "guidance": guidance, "attention_temperature": attention_temperature}
        chosen = engine.make_plan(pipe, residual, images, labels, sampling, seed, repeats)
        path = chosen.save(folder)
        if as_json:
            print(chosen.to_json(), end="")
            return
        engine.show_plan(chosen, path)


@app.command("bench", cls=Command)
def bench(
    ctx: typer.Context,
    batch: Annotated[str, typer.Option(help="Batch sizes; each is planned for.")] = "16,32",
    residual: Annotated[float, typer.Option(help="Target residual of the plans.")] = 1e-4,
    repeats: Annotated[int, typer.Option(help="Timed runs of every way of decoding, interleaved.")] = 9,
    images: Annotated[int, typer.Option(help="Samples per seed for quality, 0 for none (bundled model only).")] = 500,
    seeds: Annotated[int, typer.Option(help="Seeds of the samples for quality.")] = 4,
    guidance: Guidance = 0.0,
    model: Model = None,
    dtype: Dtype = "float32",
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl and table.md.")] = Path("results/tarflow_bench"),
    resume: Annotated[bool, typer.Option(help="Go on from what results.jsonl holds.")] = True,
    as_json: Json = False,
) -> None:
    """Sequential decoding with kept keys and values against Jacobi, GS-Jacobi and the automatic plan.

    Example: fastsample tarflow bench --batch 16,32 --repeats 9 --images 500 --seeds 4
    """
    check_switches(ctx, needs={"seeds": "images"})
    sizes = arguments.numbers(batch, "batch", int)
    arguments.check_counts(batch=min(sizes), repeats=repeats, seeds=seeds)
    arguments.check_counts(batch=max(sizes), images=max(images, 1))
    if images < 0 or images == 1:
        raise ValueError(f"--images = {images}: give 0 for none, or 2 and more, which a Frechet distance needs")
    if images and model is not None:
        raise ValueError(f"--images = {images}: only the bundled digits have a classifier, give 0 with --model")
    from fastsample.cli.engines import tarflow as engine  # torch and diffusers: not for --help

    arguments.check_scales(guidance=guidance)
    engine.check(guidance, residual=residual)
    with output_folder(out, alone=True) as folder:
        record = engine.Record(folder / "results.jsonl", resume=resume)
        runner = engine.FlowBench(engine.load(model, device, dtype), record, residual, guidance)
        engine.run_bench(runner, sizes, repeats, images, seeds, folder, as_json)
