"""Results on disk as they come: JSON lines, appended and never rewritten, whole again after a run that was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

Result = dict[str, Any]


class Record:
    """A JSON-lines file of results, one line a case, keyed by `key`; of lines with one key the last one counts.

    Opening reads the file and leaves it as it is. A run that is killed loses the line it was writing at most: what
    stands of that line is passed over by readers, and removed by the next result. Without `resume` nothing is read,
    and the first result takes the place of the whole file, at once.
    Raises ValueError for a file whose lines are no results.
    """

    def __init__(self, path: Path, *, resume: bool = True) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        self._replaces = not resume
        if resume and path.exists():
            for result in _results(path.read_bytes()):
                if not isinstance(result, dict) or "key" not in result:
                    raise ValueError(f"{path} holds a line that is no result: give another folder, or move it away")
                self.results[result["key"]] = result

    def append(self, result: Mapping[str, Any]) -> Result:
        """Put one result on disk, then add it; the result as it reads from there."""
        plain = {key: _json_number(value) for key, value in result.items()}
        line = json.dumps(plain).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._replaces:
            partial = self.path.with_suffix(f".{os.getpid()}")
            with partial.open("wb") as file:
                _write(file, line)
            partial.replace(self.path)
            self._replaces = False
        else:
            with self.path.open("ab+") as file:
                _end_line(file)
                _write(file, line)
        self.results[str(plain["key"])] = plain
        return plain


def _results(text: bytes) -> Iterator[Any]:
    """What the lines hold, without those that a kill has cut."""
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # not JSON, or not even text
            continue


def _end_line(file: BinaryIO) -> None:
    """Make the file's end the end of a line: a last line that was cut is removed, one that lacks its end gets it."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    text = file.read()
    last = text[text.rfind(b"\n") + 1 :]
    if any(_results(last)):
        file.write(b"\n")
    else:
        file.truncate(len(text) - len(last))


def _write(file: BinaryIO, line: bytes) -> None:
    file.write(line)
    file.flush()
    os.fsync(file.fileno())


def _json_number(value: Any) -> Any:
    """JSON has no inf and nan: they become None (a diverged or absent figure)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
