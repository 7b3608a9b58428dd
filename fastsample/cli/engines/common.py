"""What the commands share: the device, the model and its pipeline, the progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastsample.demo.bundled import load_pipeline, model_path

DTYPES = ("float32", "float16", "bfloat16")


def check_device(device: str, dtype: str) -> None:
    """Raise ValueError unless `device` and `dtype` exist here."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype = {dtype!r}: use one of {', '.join(DTYPES)}")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"--device = {device!r} is no device: use cpu, cuda, cuda:0 or mps") from None
    missing = (kind == "cuda" and not torch.cuda.is_available()) or (
        kind == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(f"--device = {device!r} is not available here: use cpu, or see `fastsample doctor`")


def check_model(model: str | None) -> None:
    """Raise ValueError when `model` looks like a folder and is none, or the bundled model is missing."""
    if model is None:
        if not (model_path() / "model_index.json").is_file():
            raise ValueError(f"--model: the bundled model is missing at {model_path()}; reinstall, or give --model")
        return
    if looks_local(model) and not (Path(model) / "model_index.json").is_file():
        raise ValueError(f"--model = {model!r} is no diffusers folder (no model_index.json): give one, or a hub id")


def looks_local(model: str) -> bool:
    """Whether `model` means a folder, not a hub id."""
    return Path(model).exists() or model.startswith((".", "/", "~")) or model.count("/") != 1


def load_model(model: str | None, device: str, dtype: str) -> Any:
    """The pipeline of a folder or hub id, or the bundled one."""
    torch_dtype = getattr(torch, dtype)
    if model is None:
        return load_pipeline(torch_dtype, device)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(model, dtype=torch_dtype)
    except Exception as error:  # whatever a broken folder makes of diffusers and transformers
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"--model = {model!r} could not be loaded: {reason}") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def progress_over(
    results: Iterable[dict[str, Any]], *, total: int, done: int, describe: Callable[[dict[str, Any]], str]
) -> None:
    """Draw `results` to the end under a progress bar on stderr; `done` of `total` are there already."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("benchmark", total=total, completed=done)
        for result in results:
            progress.update(task, advance=1, description=describe(result))


def quiet() -> None:
    """No advice from the libraries between our own lines."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
