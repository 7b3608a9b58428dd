"""What the commands share: reading and checking arguments, loading the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastsample.demo.bundled import load_pipeline, model_path

Number = TypeVar("Number", int, float)
DTYPES = ("float32", "float16", "bfloat16")


def numbers(text: str, argument: str, kind: Callable[[str], Number]) -> list[Number]:
    """Comma-separated numbers; ValueError names the argument and what did not parse."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        noun = "integers" if kind is int else "numbers"
        raise ValueError(f"--{argument} = {text!r}: give comma-separated {noun}, as in 5,8,10") from None
    return values


def check_least(**values: int) -> None:
    """Raise ValueError, naming the option, for a value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name} = {value}: give an integer of at least 1")


def writable_folder(path: Path, argument: str = "out") -> Path:
    """Make `path` a folder that can be written to; ValueError where that is impossible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError, OSError) as error:
        raise ValueError(
            f"--{argument} = {str(path)!r} cannot be a folder ({error.strerror}): choose another"
        ) from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"--{argument} = {str(path)!r} is not writable: choose another folder")
    return path


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given, and those of a file, one a line; ValueError when there is none or one is empty."""
    if file is not None and not file.is_file():
        raise ValueError(f"--prompts = {str(file)!r} is no file: give a text file with one prompt a line")
    found = [*prompts, *(file.read_text().splitlines() if file is not None else [])]
    if not found or any(not prompt.strip() for prompt in found):
        raise ValueError(f"prompts = {found!r}: give at least one, none of them empty")
    return found


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
