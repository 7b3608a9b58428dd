"""Results on disk as they come: JSON lines, appended, whole again after a run that was killed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fastsample.cache import naming, replacing
from fastsample.wording import counted

Result = dict[str, Any]
START = b'{"key": "'
"""Of every line."""


class Record:
    """A JSON-lines file of results, one line a case, keyed by `key`; of lines with one key the last one counts.

    Opening reads the file and leaves it as it is. A run that is killed loses the line it was writing at most: readers
    pass over what stands of it. The first result added writes a file with such remains, or with lines that others
    have replaced, anew beside the old one, whose place it then takes at once. Without `resume` the file's results do
    not count, and stay until the first new one is on disk.
    Raises ValueError, with the line, for a file that is no such record, which stays as it is either way.
    """

    def __init__(self, path: Path, *, resume: bool = True) -> None:
        self.path = path
        self._resume = resume
        text = self._text()
        found = self._read(text)
        self.results = found if resume else {}
        self._tidy = resume and text.count(b"\n") == len(found)

    def append(self, result: Mapping[str, Any]) -> Result:
        """Put one result on disk, then add it; the result as it reads from there."""
        plain = {key: _json_number(value) for key, value in result.items()}
        if self._tidy and _is_whole(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with naming(self.path), self.path.open("ab") as file:
                _write(file, [plain])
        else:
            kept = self._read(self._text()) if self._resume else {}
            with replacing(self.path) as partial, partial.open("wb") as file:
                _write(file, [*kept.values(), plain])
            self._resume = self._tidy = True
        self.results[str(plain["key"])] = plain
        return plain

    def kept(self) -> str:
        """What an interrupted run leaves, in words, and how to go on."""
        found = self._read(self._text())  # the interrupt may have come between the disk and `results`
        return f"{counted(len(found), 'result')} kept in {self.path}; the same command goes on from there"

    def _text(self) -> bytes:
        """What the file holds; nothing where there is none."""
        if self.path.exists() and not self.path.is_file():
            raise ValueError(f"{self.path} is no file: give another folder, or move it away")
        return self.path.read_bytes() if self.path.exists() else b""

    def _read(self, text: bytes) -> dict[str, Result]:
        """The results by their keys, without lines that a kill or a crash has cut."""
        found: dict[str, Result] = {}
        odd = 0  # the first line that nobody can read
        for number, line in enumerate(text.splitlines(), 1):
            try:
                result = json.loads(line.decode())
            except UnicodeDecodeError:
                odd = odd or number
                continue
            except ValueError:
                if not _is_cut(line):
                    raise self._refusal(number) from None
                continue
            if not isinstance(result, dict) or not isinstance(result.get("key"), str):
                raise self._refusal(number)
            found[result["key"]] = result
        if odd and not found:
            raise self._refusal(odd)
        return found

    def _refusal(self, line: int) -> ValueError:
        return ValueError(
            f"{self.path} holds a line that is no result: give another folder, or move it away (line {line})"
        )


def _is_cut(line: bytes) -> bool:
    """Whether a line that is not JSON is one of ours of which a kill left the beginning, or a crash only zeros."""
    return line.startswith(START) or START.startswith(line) or not line.strip(b"\0")


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
