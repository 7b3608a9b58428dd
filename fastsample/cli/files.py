"""Files that a command writes: in a folder that is its own while it runs, none of an earlier run overwritten."""

from __future__ import annotations

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from fastsample import cache
from fastsample.cache import naming


@contextlib.contextmanager
def output_folder(path: Path, argument: str = "--out", *, alone: bool = False) -> Iterator[Path]:
    """`path`, made and found writable; folders that are still empty in the end go again.

    With `alone` no other command that asks for the same has it in the meantime. Raises ValueError, in one line, where
    any of this is impossible.
    """
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path) as probe:
                probe.write(b"\0" * 4096)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(
                f"{argument} = {str(path)!r} is no folder that can be written to ({reason}): choose another"
            ) from None
        with cache.alone(path, argument) if alone else contextlib.nullcontext():
            yield path
    finally:
        with contextlib.suppress(OSError):  # what holds something stays
            for folder in new:
                folder.rmdir()


def check_page(path: Path, argument: str = "--report") -> None:
    """Raise ValueError unless `path` can become an HTML file, in a folder that is made where it is missing."""
    if path.suffix not in (".html", ".htm") or path.is_dir():
        raise ValueError(f"{argument} = {str(path)!r} is no name of a page: give one that ends in .html")
    with output_folder(path.parent, argument):
        pass


def place(folder: Path, name: str, write: Callable[[Path], object], *, again: bool = True) -> Path:
    """The file that `write(path)` makes, put into `folder` as `name`, or as name-2, name-3, .. where that is taken.

    Without `again`, a file of an earlier run that holds the same is left in its place. Raises OSError that names the
    file where it cannot be written; nothing is left of it then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with naming(folder / name), tempfile.TemporaryDirectory(prefix=".", dir=folder) as own:
        partial = Path(own) / name
        write(partial)
        for path in numbered(folder, name):
            if not again and path.is_file() and path.read_bytes() == partial.read_bytes():
                return path
            try:
                path.touch(exist_ok=False)  # ours now, whoever writes at the same time; not every disk has links
            except FileExistsError:
                continue
            return partial.replace(path)
    raise AssertionError("there is always a next number")


def place_texts(folder: Path, texts: Mapping[str, str | None]) -> list[Path]:
    """The files of `texts` by name, without those that are None; one that is there already is not written again."""
    return [
        place(folder, name, functools.partial(Path.write_text, data=text), again=False)
        for name, text in texts.items()
        if text is not None
    ]


def numbered(folder: Path, name: str) -> Iterator[Path]:
    """`name` in `folder`, then name-2, name-3, .. before its suffix."""
    stem, suffix = Path(name).stem, Path(name).suffix
    return itertools.chain([folder / name], (folder / f"{stem}-{number}{suffix}" for number in itertools.count(2)))
