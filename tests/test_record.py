"""A record survives a kill anywhere, and holds results for the weights, device and threads that gave them alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import record_kills
import torch
from record_kills import NEW, OLD, written
from torch import nn

from fastsample.bench.context import context_of, environment, weights_digest
from fastsample.bench.record import Record
from fastsample.bench.report import summarise
from fastsample.cache import replacing

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]


def test_opening_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    assert Record(path).results == {}
    assert not path.exists()
    text = written(path)
    for cut in (text, text[:-1], text[:-9], b""):
        path.write_bytes(cut)
        os.utime(path, (1, 1))
        for resume in (True, False):
            Record(path, resume=resume)
            assert path.read_bytes() == cut
            assert path.stat().st_mtime == 1


def test_a_line_cut_anywhere_is_all_that_is_lost(tmp_path: Path) -> None:
    """Every length that a kill, or a full disk, may leave: whole lines count, and every line is JSON again."""
    path = tmp_path / "results.jsonl"
    text = written(path)
    lines = text.splitlines()
    for size in range(len(text) + 1):
        path.write_bytes(text[:size])
        whole = [line for line in lines if line in text[:size].splitlines()]
        record = Record(path)
        assert list(record.results.values()) == [json.loads(line) for line in whole]
        for result in NEW:
            record.append(result)
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*map(json.loads, whole), *NEW]
        assert list(Record(path).results.values()) == [*map(json.loads, whole), *NEW]


@pytest.mark.parametrize("noise", [b"\0" * 30, b"\xff\xfe\xff", b"{", b'{"key": "old'])
def test_what_is_no_line_is_passed_over(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "results.jsonl"
    text = written(path)
    for broken in (text + noise, noise + b"\n" + text):
        path.write_bytes(broken)
        record = Record(path)
        assert list(record.results.values()) == OLD
        record.append(NEW[0])
        assert list(Record(path).results.values()) == [*OLD, NEW[0]]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for text in ("[1, 2]\n", '{"name": 1}\n', "7\n"):
        (tmp_path / "results.jsonl").write_text(text)
        with pytest.raises(ValueError, match=r"results.jsonl holds a line that is no result: give another folder"):
            Record(tmp_path / "results.jsonl")


def test_lines_that_others_replaced_go_with_the_next_opening(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    later = [{**result, "value": -1.0} for result in OLD]
    written(path, [*OLD, *later])
    assert len(path.read_bytes().splitlines()) == 6  # none is rewritten while a run is on
    assert list(Record(path).results.values()) == later
    Record(path).append(NEW[0])
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [*later, NEW[0]]


def test_a_run_killed_beside_another_costs_it_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    written(path)
    record = Record(path)
    with path.open("ab") as file:
        file.write(b'{"key": "of ano')
    record.append(NEW[0])
    record.append(NEW[1])
    assert list(Record(path).results.values()) == [*OLD, *NEW]


def test_threads_that_write_one_file_leave_one_whole(tmp_path: Path) -> None:
    met, failed = threading.Barrier(2), []

    def write(letter: str) -> None:
        try:
            with replacing(tmp_path / "file") as partial, partial.open("w") as file:
                file.write(letter)
                met.wait(10)
                file.write(letter)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (tmp_path / "file").read_text() in ("aa", "bb")
    assert len([*tmp_path.iterdir()]) == 1


def test_two_runs_at_once_keep_each_others_results(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    written(path, OLD[:1])
    first, second = Record(path), Record(path)
    first.append(OLD[1])
    second.append(OLD[2])
    first.append(NEW[0])
    assert list(Record(path).results.values()) == [*OLD, NEW[0]]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
@pytest.mark.parametrize("end", ["", "\n", '{"key": "cu'], ids=["no end", "whole", "cut"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_kill_at_any_line_loses_no_result(tmp_path: Path, resume: bool, end: str) -> None:
    """Killed before each line of the module in turn: at opening, between and inside two appends."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, record_kills.__file__, str(tmp_path), str(resume), end]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 30


def test_published_records_load() -> None:
    """Those of benchmarks/, for reports."""
    found = sorted((ROOT / "benchmarks").glob("*/results.jsonl"))
    assert len(found) >= 6
    for path in found:
        text = path.read_bytes()
        results = list(Record(path).results.values())
        assert len(results) == len(text.splitlines()) > 0
        assert path.read_bytes() == text
        if "arm" in results[0]:
            assert sum(row.seeds for row in summarise(results)) == len(results)


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def changed(change: Callable[[nn.Module], Any]) -> nn.Module:
    model = small()
    with torch.no_grad():
        change(model)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model[0].weight.mul_(-1),  # the same sum of squares
        lambda model: model[0].weight.copy_(model[0].weight.flip(1)),  # the same sum
        lambda model: model[0].bias[1].add_(1e-7),
        lambda model: model[1].running_mean.add_(1),  # a buffer
        lambda model: model[1].num_batches_tracked.add_(1),
        lambda model: model.half(),
        lambda model: model.bfloat16(),
        lambda model: model.append(nn.Identity()).append(nn.Linear(1, 1)),
    ],
    ids=["negated", "permuted", "a bit", "buffer", "count", "half", "bfloat16", "a layer more"],
)
def test_other_weights_have_another_digest(change: Callable[[nn.Module], Any]) -> None:
    assert weights_digest([changed(change)]) != weights_digest([small()]) == weights_digest([small()])


def test_a_context_is_of_weights_device_threads_and_settings() -> None:
    model, threads = small(), torch.get_num_threads()
    own = context_of([model], CPU, 1, "a")
    assert own == context_of([small()], CPU, 1, "a")
    others = {
        context_of([changed(lambda model: model[0].bias.add_(1))], CPU, 1, "a"),
        context_of([model], torch.device("meta"), 1, "a"),
        context_of([model], CPU, 2, "a"),
        context_of([model, model], CPU, 1, "a"),
    }
    try:
        torch.set_num_threads(threads + 1)
        others.add(context_of([model], CPU, 1, "a"))
        assert environment()["threads"] == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert len(others - {own}) == 5


def test_the_environment_names_what_the_run_was_on() -> None:
    """Not the GPU that happens to be there."""
    assert environment()["device"].startswith("CPU ")
    assert environment("mps")["device"].startswith("MPS ")
    if torch.cuda.is_available():
        assert environment("cuda")["device"] == torch.cuda.get_device_name()
