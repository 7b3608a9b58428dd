"""Arguments of the commands, read and checked before anything slow is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float)


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
