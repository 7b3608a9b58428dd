"""A TarFlow sampled, planned for and measured: its pipeline, the files read and written, the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fastsample.bench.record import Record
from fastsample.bench.tarflow import FlowBench, digit_score, markdown
from fastsample.cache import replacing
from fastsample.cli import arguments
from fastsample.cli.command import on_interrupt
from fastsample.cli.engines import common, tables
from fastsample.cli.engines.progress import counting, following
from fastsample.cli.engines.sample import contact_sheet
from fastsample.cli.files import place
from fastsample.demo.digits import load_pipeline
from fastsample.tarflow import Plan, TarFlowPipeline, load_original, plan
from fastsample.tarflow.decode import METHODS
from fastsample.tarflow.system import Guidance
from fastsample.wording import counted

__all__ = [
    "FlowBench",
    "Record",
    "check",
    "folder_of_plan",
    "load",
    "make_plan",
    "read_data",
    "run_bench",
    "show_plan",
    "write_images",
]


def check(
    guidance: float, attention_temperature: float = 1.0, method: str | None = None, residual: float = 1e-4
) -> None:
    """Raise ValueError for settings that no model takes, before one is loaded."""
    Guidance(guidance, temperature=attention_temperature)
    if method is not None and method not in METHODS:
        raise ValueError(f"method = {method!r}: use one of {', '.join(METHODS)}")
    if not 0 < residual < math.inf:
        raise ValueError(f"target_residual = {residual}: give a number above 0, 1e-4 for example")


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
        with common.loading(model):
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
    if classes and not all(0 <= label < known for label in classes):
        raise ValueError(f"labels = {min(classes) if min(classes) < 0 else max(classes)}: {_classes(known)}")
    if classes is None and known:
        classes = list(range(known))
    total = count * len(classes or [0])
    seeds = ((1_000_003 * (seed + 1) + index) % arguments.SEEDS for index in range(total))
    generators = [torch.Generator().manual_seed(own) for own in seeds]
    made = pipe(classes, num_images_per_label=count, generator=generators, output_type="pil", **how)
    files = []
    for index, image in enumerate(made.images):
        label = f"label{classes[index // count]}-" if classes else ""
        files.append(place(folder, f"{label}{index % count:03d}.png", image.save))
    sheet = contact_sheet(files, folder)
    report = made.report
    cost = {"sweeps": report.sweeps, "seconds": round(sum(block.seconds for block in report.blocks), 3)}
    if as_json:
        print(json.dumps({"images": list(map(str, files)), "contact_sheet": str(sheet), **cost}, indent=2))
        return
    passes = counted(report.sweeps, "pass", "passes")
    print(f"{counted(total, 'image')} in {cost['seconds']:.2f} s, {passes} of a block\ncontact sheet: {sheet}")
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
    return measured(
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
    with on_interrupt(runner.record.kept):
        for size in sizes:
            own = measured(runner.plan, size)
            _write(folder / f"plan-{size}.json", own.to_json())
            results += runner.speed(size, repeats)
        if images:
            scored = runner.quality(images, sizes[-1], seeds, digit_score)
            told = following(scored, total=2 * seeds, describe=lambda one: f"{one['arm']}, seed {one['seed']}")
            results += told
    table = markdown(results)
    _write(folder / "table.md", table)
    print(json.dumps(results, indent=2) if as_json else table, end="")


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


def read_data(path: Path | None) -> tuple[Tensor | None, Tensor | None]:
    """Images and labels of a safetensors file, None where it has none. Raises ValueError without images."""
    if path is None:
        return None, None
    try:
        data = load_file(path)
        return data["images"], data.get("labels")
    except (OSError, KeyError, SafetensorError) as error:
        raise ValueError(f"--data = {str(path)!r} is no safetensors file with images ({error})") from None


def measured(measure: Callable[..., Plan], *given: Any, **options: Any) -> Plan:
    """What `measure` finds, telling which block was measured."""
    return counting(lambda tell: measure(*given, on_block=lambda index: tell(f"block {index} measured"), **options))


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
    tables.show(table)
    faster = sum(found["sequential_seconds"]) / sum(found["seconds"])
    print(f"residual {found['residual']:.1e}, {faster:.2f} times faster: {path}")


def folder_of_plan(model: str | None, out: Path | None) -> Path:
    """Where a plan goes: `out`, else beside the model. ValueError for one without a folder that is the user's."""
    if out is not None:
        return out
    if model is None:
        raise ValueError("--out is missing: the bundled model's plan comes with the package; give a folder for yours")
    if not Path(model).is_dir():
        raise ValueError(f"--out: {model!r} is no folder to keep the plan in; give one")
    return Path(model)


def _classes(known: int) -> str:
    return f"the model has classes 0 to {known - 1}" if known else "the model has no classes, leave them out"
