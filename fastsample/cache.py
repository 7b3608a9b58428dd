"""Where what was computed is kept (references, trajectories, stages of a tuning), and how files are written whole."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"


def cache_folder() -> Path:
    """$FASTSAMPLE_CACHE, or ~/.cache/fastsample."""
    return Path(os.environ.get("FASTSAMPLE_CACHE") or Path.home() / ".cache" / "fastsample")


@contextlib.contextmanager
def alone(folder: Path, argument: str) -> Iterator[None]:
    """In the block no other run that asks for the same has `folder`, which must be there.

    The system lets the lock go with its process, however that ends. Raises ValueError, which names the argument,
    where another run has the folder.
    """
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"{argument} = {str(folder)!r}: another run writes there now; wait for it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits finds that out, and makes a new one
        lock.release()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write, which takes its place when the block ends: whole or not at all.

    Raises OSError that names `path` where it cannot be written; then it is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """In the block, errors of the system say that they are of `path`, those that safetensors passes on too."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
