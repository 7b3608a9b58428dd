"""Arguments of the commands, read and checked before anything slow is loaded."""

from __future__ import annotations

import io
import unicodedata
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


MOST = 10_000
"""Of anything that is counted; more is a slip, and would take days or more memory than there is."""
BOUNDS = {"steps": 1000, "height": 16_384, "width": 16_384, "budget": 10**9}
"""Of what has another bound: as many steps as models are trained with, pixels of a side, evaluations."""
MOST_SCALE = 1000
"""Of guidance and temperature."""
SEEDS = 2**64
"""Seeds of torch's generators are below."""


def numbers(text: str, argument: str, kind: Callable[[str], Number]) -> list[Number]:
    """Comma-separated numbers, each once; ValueError names the argument and what did not parse."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        noun = "integers" if kind is int else "numbers"
        raise ValueError(f"--{argument} = {_cut(text)}: give comma-separated {noun}, as in 5,8,10") from None
    check_once(values, argument)
    return values


def check_once(values: Sequence[object], argument: str) -> None:
    """Raise ValueError, naming the option, for a value that is there twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"--{argument}: {value} is there twice; leave one of them out")


def check_counts(**values: int | None) -> None:
    """Raise ValueError, naming the option, for a count below 1 or above what makes sense; None is not given."""
    for name, value in values.items():
        option, most = name.replace("_", "-"), BOUNDS.get(name, MOST)
        if value is not None and value < 1:
            raise ValueError(f"--{option} = {value}: give an integer of at least 1")
        if value is not None and value > most:
            raise ValueError(f"--{option} = {value}: give at most {most}")


def check_scales(**values: float | None) -> None:
    """Raise ValueError, naming the option, for a scale beyond any that makes sense; None is not given."""
    for name, value in values.items():
        if value is not None and value > MOST_SCALE:
            raise ValueError(f"--{name.replace('_', '-')} = {value:g}: give at most {MOST_SCALE}")


def check_seeds(seeds: Sequence[int], most: int = SEEDS - 1) -> None:
    """Raise ValueError for a seed below 0 or beyond 64 bits, and for one that is there twice."""
    for seed in (min(seeds), max(seeds)):
        if not 0 <= seed <= most:
            raise ValueError(f"--seed = {seed}: give an integer from 0 to {most}")
    if len(set(seeds)) < len(seeds):
        check_once(seeds, "seed")


def read_prompts(prompts: Sequence[str], file: Path | None, argument: str = "prompts") -> list[str]:
    """The prompts given, and those of a file, one a line; ValueError for none, and for one that is empty or odd."""
    if not prompts and file is None:
        raise ValueError("prompts = []: give at least one, by --prompt or --prompts")
    for prompt in prompts:
        if not prompt.strip():
            raise ValueError(f"prompts = {list(prompts)!r}: give at least one, none of them empty")
        if not _is_text(prompt):
            raise ValueError(f"--prompt = {_cut(prompt)} is no text: leave out what is not printable")
    return [*prompts, *(_lines(file, argument) if file is not None else [])]


def _lines(file: Path, argument: str) -> list[str]:
    """The lines of a text file; ValueError names it where it is none."""
    name = f"--{argument} = {str(file)!r}"
    try:
        if not file.is_file():
            raise ValueError(f"{name} is no file: give a text file with one prompt a line")
        lines = [line.rstrip("\n") for line in io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=None)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no text in UTF-8 (byte {error.start}): give one prompt a line") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}): give a text file") from None
    if not lines:
        raise ValueError(f"{name} is empty: write one prompt a line into it")
    for number, line in enumerate(lines, 1):
        if not line.strip() or not _is_text(line):
            fault = "is no text" if line.strip() else "is empty"
            raise ValueError(f"{name}, line {number}, {fault}: write one prompt a line")
    return lines


def _is_text(prompt: str) -> bool:
    """Whether it can be read: no control characters, and no bytes that are no character."""
    return not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in prompt if letter != "\t")


def _cut(text: str, most: int = 60) -> str:
    """`text` quoted, its end left out where it is long."""
    return repr(text if len(text) <= most else text[:most] + "..")
