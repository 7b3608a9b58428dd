"""A TarFlow sampled, planned for and measured: its pipeline, the files read and written, the tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm

from fastsample.bench.record import Record
from fastsample.bench.tarflow import FlowBench, digit_score, markdown
from fastsample.cli.engines import common
from fastsample.cli.engines.sample import contact_sheet
from fastsample.demo.digits import load_pipeline, model_path
from fastsample.tarflow import Plan, TarFlowPipeline, load_original, plan

__all__ = [
    "FlowBench",
    "Record",
    "folder_of",
    "load",
    "make_plan",
    "read_data",
    "run_bench",
    "show_plan",
    "write_images",
]


def load(model: str | None, device: str, dtype: str) -> TarFlowPipeline:
    """The pipeline that the arguments name, or the bundled one. Raises ValueError where there is none."""
    common.check_device(device, dtype)
    common.quiet()
    if model is None:
        return load_pipeline(getattr(torch, dtype), device)
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


def write_images(
    pipe: TarFlowPipeline,
    classes: list[int] | None,
    count: int,
    seed: int,
    folder: Path,
    how: dict[str, Any],
    as_json: bool,
) -> None:
    """Draw `count` images of each class, or of none, write them with a contact sheet, and say what it took."""
    known = pipe.transformer.config.num_classes
    if classes is None and known:
        classes = list(range(known))
    total = count * len(classes or [0])
    generators = [torch.Generator().manual_seed(1_000_003 * (seed + 1) + index) for index in range(total)]
    made = pipe(classes, num_images_per_label=count, generator=generators, output_type="pil", **how)
    files = []
    for index, image in enumerate(made.images):
        label = f"label{classes[index // count]}-" if classes else ""
        files.append(folder / f"{label}{index % count:03d}.png")
        image.save(files[-1])
    sheet = contact_sheet(files, folder)
    report = made.report
    cost = {"sweeps": report.sweeps, "seconds": round(sum(block.seconds for block in report.blocks), 3)}
    if as_json:
        print(json.dumps({"images": list(map(str, files)), "contact_sheet": str(sheet), **cost}, indent=2))
        return
    print(f"{total} images in {cost['seconds']:.2f} s, {cost['sweeps']} passes of a block\ncontact sheet: {sheet}")
    for block, tokens in report.substituted.items():
        print(f"block {block}: overflowed, redone one token after the other from token {tokens}")


def make_plan(
    pipe: TarFlowPipeline,
    residual: float,
    images: Tensor | None,
    labels: Tensor | None,
    sampling: dict[str, Any],
    seed: int,
    repeats: int,
) -> Plan:
    """The plan that measures fastest on the images, or on samples from `seed`."""
    return with_bar(
        plan,
        pipe.transformer,
        residual,
        images=None if images is None else images.to(pipe.device, pipe.dtype),
        labels=None if labels is None else labels.to(pipe.device),
        generator=torch.Generator().manual_seed(seed),
        repeats=repeats,
        **sampling,
    )


def run_bench(
    runner: FlowBench, sizes: Sequence[int], repeats: int, images: int, seeds: int, folder: Path, as_json: bool
) -> None:
    """Plan for each batch size, time every way of decoding, judge `images` samples; the tables, and the files."""
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


def read_data(path: Path | None) -> tuple[Tensor | None, Tensor | None]:
    """Images and labels of a safetensors file, None where it has none. Raises ValueError without images."""
    if path is None:
        return None, None
    try:
        data = load_file(path)
        return data["images"], data.get("labels")
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"--data = {str(path)!r} is no safetensors file with images ({error})") from None


def with_bar(measure: Callable[..., Plan], *arguments: Any, **options: Any) -> Plan:
    """What `measure` finds, with a bar of the blocks measured."""
    with tqdm(desc="blocks measured") as bar:
        return measure(*arguments, on_block=lambda index: bar.update(), **options)


def show_plan(chosen: Plan, path: Path) -> None:
    """What was chosen for each block, and why."""
    titles = (
        "block",
        "CRM",
        *(f"IGM {start}" for start in chosen.measured["igm"]),
        "start",
        "chunks",
        "sweep limit",
        "tolerance",
        "sweeps",
        "ms",
        "of",
    )
    table = Table(*titles, title="in the order of decoding; ms is the plan's, of so many sequentially")
    found = chosen.measured
    for index in reversed(range(len(chosen.blocks))):
        block = chosen.blocks[index]
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


def folder_of(model: str | None) -> Path:
    """Where the model lies, to keep its plan beside it."""
    return model_path() if model is None else Path(model)
