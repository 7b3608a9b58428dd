"""Results on disk as they come: JSON lines, appended, whole again after a run that was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

Result = dict[str, Any]


class Record:
    """A JSON-lines file of results, one line a case, keyed by `key`; of lines with one key the last one counts.

    Opening reads the file and leaves it as it is. A run that is killed loses the line it was writing at most: readers
    pass over what stands of it. The first result added writes a file with such remains, or with lines that others
    have replaced, anew beside the old one, whose place it then takes at once. Without `resume` the file's results are
    not read, and stay until the first new one is on disk.
    Raises ValueError for a file whose lines are no results.
    """

    def __init__(self, path: Path, *, resume: bool = True) -> None:
        self.path = path
        self._resume = resume
        text = path.read_bytes() if resume and path.exists() else b""
        self.results = self._read(text)
        self._tidy = resume and text.count(b"\n") == len(self.results)

    def append(self, result: Mapping[str, Any]) -> Result:
        """Put one result on disk, then add it; the result as it reads from there."""
        plain = {key: _json_number(value) for key, value in result.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._tidy and _is_whole(self.path):
            with self.path.open("ab") as file:
                _write(file, [plain])
        else:
            kept = self._read(self.path.read_bytes()) if self._resume and self.path.exists() else {}
            partial = self.path.with_suffix(f".{os.getpid()}")
            with partial.open("wb") as file:
                _write(file, [*kept.values(), plain])
            partial.replace(self.path)
            self._resume = self._tidy = True
        self.results[str(plain["key"])] = plain
        return plain

    def _read(self, text: bytes) -> dict[str, Result]:
        """The results by their keys, without lines that a kill has cut."""
        found: dict[str, Result] = {}
        for line in text.splitlines():
            try:
                result = json.loads(line)
            except ValueError:  # not JSON, or not even text
                continue
            if not isinstance(result, dict) or "key" not in result:
                raise ValueError(f"{self.path} holds a line that is no result: give another folder, or move it away")
            found[result["key"]] = result
        return found


def _is_whole(path: Path) -> bool:
    """Whether the file ends with the end of a line: another run may have been killed meanwhile."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _write(file: BinaryIO, results: list[Result]) -> None:
    file.write(b"".join(json.dumps(result).encode() + b"\n" for result in results))
    file.flush()
    os.fsync(file.fileno())


def _json_number(value: Any) -> Any:
    """JSON has no inf and nan: they become None (a diverged or absent figure)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
