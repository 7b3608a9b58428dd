"""Files that a command writes: numbered, so that none of an earlier run is overwritten."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def place(folder: Path, name: str, write: Callable[[Path], object], *, again: bool = True) -> Path:
    """The file that `write(path)` makes, put into `folder` as `name`, or as name-2, name-3, .. where that is taken.

    Without `again`, a file of an earlier run that holds the same is left in its place.
    """
    with tempfile.TemporaryDirectory(prefix=".", dir=folder) as own:
        partial = Path(own) / name
        write(partial)
        for path in numbered(folder, name):
            if not again and path.exists() and path.read_bytes() == partial.read_bytes():
                return path
            try:
                path.hardlink_to(partial)  # never onto another file, whoever writes at the same time
            except FileExistsError:
                continue
            return path
    raise AssertionError("there is always a next number")


def numbered(folder: Path, name: str) -> Iterator[Path]:
    """`name` in `folder`, then name-2, name-3, .. before its suffix."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return itertools.chain([folder / name], (folder / f"{stem}-{number}{suffix}" for number in itertools.count(2)))
