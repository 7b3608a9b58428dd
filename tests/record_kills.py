"""A record's writer, killed before each line of the record's module in turn; alone, as a small process forks fast.

python tests/record_kills.py FOLDER RESUME END
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastsample.bench import record as module
from fastsample.bench.record import Record

OLD = [{"key": f"old {index}", "text": "é" * index, "value": index / 3} for index in range(3)]
NEW = [{"key": f"new {index}", "value": 1 / 3 + index} for index in range(2)]


def written(path: Path, results: list[dict[str, Any]] = OLD) -> bytes:
    """A file of the results, as another run left it."""
    record = Record(path)
    for result in results:
        record.append(result)
    return path.read_bytes()


def killed_at(line: int, work: Callable[[], None]) -> bool:
    """Run `work` in a process that is killed before the `line`-th line of the record's module; whether it was."""
    child = os.fork()
    if not child:
        count = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal count
            if frame.f_code.co_filename != module.__file__:
                return None
            count += event == "line"
            if count == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        work()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def kill_at_each_line(folder: Path, resume: bool, end: str) -> int:
    """How many kills a record survived: at opening, between and inside two appends; AssertionError else."""
    path, told = folder / "results.jsonl", folder / "told"
    before = written(folder / "before").rstrip(b"\n") + (b"\n" if end.startswith("{") else b"") + end.encode()

    def work() -> None:
        record = Record(path, resume=resume)
        for result in NEW:
            record.append(result)
            with told.open("a") as file:
                file.write(f"{result['key']}\n")

    line = 0
    while True:
        line += 1
        path.write_bytes(before)
        told.write_text("")
        killed = killed_at(line, work)
        kept = list(Record(path).results.values())
        done = len(told.read_text().splitlines())
        old = OLD if resume or kept[:1] == OLD[:1] else []  # without resume they go as the first new one comes
        assert kept in ([*old, *NEW[:done]], [*old, *NEW[: done + 1]]), (line, kept)
        assert resume or not (old and kept[len(old) :]), (line, kept)
        assert resume or done == 0 or not old, (line, kept)
        if not killed:
            break
    assert kept == ([*OLD, *NEW] if resume else NEW), kept
    return line - 1


if __name__ == "__main__":
    print(kill_at_each_line(Path(sys.argv[1]), sys.argv[2] == "True", sys.argv[3]))
