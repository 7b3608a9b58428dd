"""Arguments of the commands, read and checked before anything slow is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import typer

Number = TypeVar("Number", int, float)

Model = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of any text-to-image or text-to-video pipeline of diffusers, or a bundled one: "
        "text_to_image (default), flow_text_to_image."
    ),
]
Height = Annotated[int | None, typer.Option(help="Pixels; default: the pipeline's own.")]
Width = Annotated[int | None, typer.Option(help="Pixels; default: the pipeline's own.")]
Frames = Annotated[
    int | None, typer.Option("--frames", "--num-frames", help="Frames of a video; default: the pipeline's own.")
]
NegativePrompt = Annotated[
    str | None, typer.Option(help="What guidance leads away from; default: the pipeline's own, mostly the empty one.")
]
Call = Annotated[
    list[str] | None,
    typer.Option(help="Another argument key=value of the pipeline's call, as max_sequence_length=128; repeat."),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, float16 or bfloat16; default: float32, and bfloat16 with --model on a GPU."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:0, mps; default: the GPU where there is one, else the CPU.")
]
Offload = Annotated[
    str,
    typer.Option(help="To the CPU: none, model (a network at a time on the GPU) or sequential (a layer at a time)."),
]


def numbers(text: str, argument: str, kind: Callable[[str], Number]) -> list[Number]:
    """Comma-separated numbers; ValueError names the argument and what did not parse."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        noun = "integers" if kind is int else "numbers"
        raise ValueError(f"--{argument} = {text!r}: give comma-separated {noun}, as in 5,8,10") from None
    return values


def check_least(**values: int | None) -> None:
    """Raise ValueError, naming the option, for a value below 1; None is not given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} = {value}: give an integer of at least 1")


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


def check_page(path: Path, argument: str = "report") -> None:
    """Raise ValueError unless `path` can become an HTML file, in a folder that is made where it is missing."""
    if path.suffix not in (".html", ".htm") or path.is_dir():
        raise ValueError(f"--{argument} = {str(path)!r} is no name of a page: give one that ends in .html")
    writable_folder(path.parent, argument)


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """The prompts given, and those of a file, one a line; ValueError when there is none or one is empty."""
    if file is not None and not file.is_file():
        raise ValueError(f"--prompts = {str(file)!r} is no file: give a text file with one prompt a line")
    found = [*prompts, *(file.read_text().splitlines() if file is not None else [])]
    if not found or any(not prompt.strip() for prompt in found):
        raise ValueError(f"prompts = {found!r}: give at least one, none of them empty")
    return found
