"""`fastsample tarflow`: samples of a TarFlow, a plan to draw them faster, and a benchmark of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastsample.cli import common
from fastsample.cli.sample import contact_sheet

if TYPE_CHECKING:
    from fastsample.tarflow import Plan, TarFlowPipeline

app = typer.Typer(help="TarFlow: sample, plan parallel decoding (GS-Jacobi), measure it.", no_args_is_help=True)

Model = Annotated[
    str | None, typer.Option(help="Pipeline folder, hub id, or an authors' .pth file; default: the bundled digits.")
]
Guidance = Annotated[float, typer.Option(help="Guidance, 0 is none.")]
Temperature = Annotated[float, typer.Option(help="Attention temperature of the unlabelled pass.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0, mps.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def sample(
    labels: Annotated[str | None, typer.Option(help="Class labels; default: each class once.")] = None,
    count: Annotated[int, typer.Option(help="Images a label.")] = 1,
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
    import torch

    classes = common.numbers(labels, "labels", int) if labels else None
    common.check_least(count=count)
    pipe = load(model, device, dtype)
    known = pipe.transformer.config.num_classes
    if classes is None and known:
        classes = list(range(known))
    total = count * len(classes or [0])
    folder = common.writable_folder(out)
    made = pipe(
        classes,
        num_images_per_label=count,
        guidance=guidance,
        attention_temperature=attention_temperature,
        method=method,
        denoise=denoise,
        generator=[torch.Generator().manual_seed(1_000_003 * (seed + 1) + index) for index in range(total)],
        output_type="pil",
    )
    files = []
    for index, image in enumerate(made.images):
        label = f"label{classes[index // count]}-" if classes else ""
        files.append(folder / f"{label}{index % count:03d}.png")
        image.save(files[-1])
    sheet = contact_sheet(files, folder / "contact-sheet.png")
    report = made.report
    cost = {"sweeps": report.sweeps, "seconds": round(sum(block.seconds for block in report.blocks), 3)}
    if as_json:
        print(json.dumps({"images": list(map(str, files)), "contact_sheet": str(sheet), **cost}, indent=2))
        return
    print(f"{total} images in {cost['seconds']:.2f} s, {cost['sweeps']} passes of a block\ncontact sheet: {sheet}")
    for block, tokens in report.substituted.items():
        print(f"block {block}: overflowed, redone one token after the other from token {tokens}")


@app.command("plan")
def make_plan(
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
    out: Annotated[Path | None, typer.Option(help="Folder of the plan; default: beside the model.")] = None,
    as_json: Json = False,
) -> None:
    """Choose start, chunks and sweep limits of every block by measured cost, and save them as JSON.

    Example: fastsample tarflow plan --batch 16 --residual 1e-4 --out results/tarflow
    """
    import torch

    from fastsample.tarflow import plan

    common.check_least(batch=batch, repeats=repeats)
    images, labels = read_data(data)
    pipe = load(model, device, dtype)
    if out is None and model is not None and not Path(model).is_dir():
        raise ValueError(f"--out: {model!r} is no folder to keep the plan in; give one")
    folder = common.writable_folder(out or _folder_of(model))
    chosen = with_bar(
        plan,
        pipe.transformer,
        residual,
        images=None if images is None else images.to(pipe.device, pipe.dtype),
        labels=None if labels is None else labels.to(pipe.device),
        batch=batch,
        guidance=guidance,
        attention_temperature=attention_temperature,
        generator=torch.Generator().manual_seed(seed),
        repeats=repeats,
    )
    path = chosen.save(folder)
    if as_json:
        print(chosen.to_json(), end="")
        return
    show_plan(chosen, path)


@app.command()
def bench(
    batch: Annotated[str, typer.Option(help="Batch sizes; each is planned for.")] = "16,32",
    residual: Annotated[float, typer.Option(help="Target residual of the plans.")] = 1e-4,
    repeats: Annotated[int, typer.Option(help="Timed runs of every way of decoding, interleaved.")] = 9,
    images: Annotated[int, typer.Option(help="Samples a seed for quality, 0 for none (bundled model only).")] = 500,
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
    sizes = common.numbers(batch, "batch", int)
    common.check_least(batch=min(sizes), repeats=repeats, seeds=seeds)
    if images < 0 or images == 1:
        raise ValueError(f"--images = {images}: give 0 for none, or 2 and more, which a Frechet distance needs")
    if images and model is not None:
        raise ValueError(f"--images = {images}: only the bundled digits have a classifier, give 0 with --model")
    pipe = load(model, device, dtype)
    folder = common.writable_folder(out)

    from fastsample.bench.record import Record
    from fastsample.bench.tarflow import FlowBench, digit_score, markdown

    runner = FlowBench(pipe, Record(folder / "results.jsonl", resume=resume), residual, guidance)
    results = []
    for size in sizes:
        own = with_bar(runner.plan, size)
        (folder / f"plan-{size}.json").write_text(own.to_json())
        results += runner.speed(size, repeats)
    if images:
        results += runner.quality(images, sizes[-1], seeds, digit_score)
    table = markdown(results)
    (folder / "table.md").write_text(table)
    print(json.dumps(results, indent=2) if as_json else table, end="")


def load(model: str | None, device: str, dtype: str) -> TarFlowPipeline:
    """The pipeline that the arguments name, or the bundled one. Raises ValueError where there is none."""
    import torch

    common.check_device(device, dtype)
    common.quiet()
    if model is None:
        from fastsample.demo.digits import load_pipeline

        return load_pipeline(getattr(torch, dtype), device)
    from fastsample.tarflow import TarFlowPipeline, load_original

    path = Path(model)
    if path.suffix == ".pth":
        if not path.is_file():
            raise ValueError(f"--model = {model!r} is no file: give an authors' checkpoint, or a pipeline folder")
        pipe = TarFlowPipeline(load_original(path).to(getattr(torch, dtype)))
    else:
        common.check_model(model)
        pipe = TarFlowPipeline.from_pretrained(model, dtype=getattr(torch, dtype))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def read_data(path: Path | None) -> tuple[Any, Any]:
    """Images and labels of a safetensors file, None where it has none. Raises ValueError without images."""
    if path is None:
        return None, None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        data = load_file(path)
        return data["images"], data.get("labels")
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"--data = {str(path)!r} is no safetensors file with images ({error})") from None


def with_bar(measure: Callable[..., Plan], *arguments: Any, **options: Any) -> Plan:
    """What `measure` finds, with a bar of the blocks measured."""
    from tqdm.auto import tqdm

    with tqdm(desc="blocks measured") as bar:
        return measure(*arguments, on_block=lambda index: bar.update(), **options)


def show_plan(plan: Plan, path: Path) -> None:
    """What was chosen for each block, and why."""
    from rich.console import Console
    from rich.table import Table

    titles = (
        "block",
        "CRM",
        *(f"IGM {start}" for start in plan.measured["igm"]),
        "start",
        "chunks",
        "sweep limit",
        "tolerance",
        "sweeps",
        "ms",
        "of",
    )
    table = Table(*titles, title="in the order of decoding; ms is the plan's, of so many sequentially")
    found = plan.measured
    for index in reversed(range(len(plan.blocks))):
        block = plan.blocks[index]
        table.add_row(
            str(index),
            f"{found['crm'][index]:.2f}",
            *(f"{values[index]:.2f}" for values in found["igm"].values()),
            block.start,
            str(block.chunks),
            str(block.max_sweeps or "-"),
            f"{block.tolerance:.1e}",
            str(found["sweeps"][index]),
            *(f"{1e3 * found[name][index]:.1f}" for name in ("seconds", "sequential_seconds")),
        )
    console = Console()
    console.print(table)
    faster = sum(found["sequential_seconds"]) / sum(found["seconds"])
    console.print(f"residual {found['residual']:.1e}, {faster:.2f} times faster: {path}")


def _folder_of(model: str | None) -> Path:
    from fastsample.demo.digits import model_path

    return model_path() if model is None else Path(model)
