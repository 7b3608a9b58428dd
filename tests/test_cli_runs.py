"""Runs of the command line from outside: interrupted, two at once, on a full disk, and what help and progress say."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from fastsample.bench.record import Record
from fastsample.cache import LOCK, cache_folder, naming, replacing
from fastsample.cli import main
from fastsample.cli.bench import DECODING
from fastsample.cli.engines import tables
from fastsample.cli.engines.progress import counting, following
from fastsample.cli.files import output_folder, place
from fastsample.version import __version__

PACKAGE = Path(main.__file__).parents[1]
BENCH = ["bench", "--decode", "--problems", "8", "--out", "bench", "--rule", "threshold:confidence=0.5"]
MORE = ["--rule", "low-confidence", "--rule", "margin", "--rule", "entropy"]


def commands() -> dict[str, Any]:
    """Every command by its name, as click has it."""
    found: dict[str, Any] = {}
    for name, command in main.command().commands.items():
        below = getattr(command, "commands", None)
        found |= {f"{name} {part}": one for part, one in below.items()} if below else {name: command}
    return found


def start(folder: Path, *code: str) -> subprocess.Popen[str]:
    """Python with these arguments, which Ctrl-C reaches even where the tests run in the background."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *code], cwd=folder, preexec_fn=_hear_interrupts, **pipes)


def _hear_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_an_interrupt_keeps_what_is_done_and_a_second_run_is_refused_meanwhile(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from fastsample.cli.engines import bench_decoding  # noqa: F401  loaded before the other process is on its way

    record = tmp_path / "bench" / "results.jsonl"
    bench = start(tmp_path, "-m", "fastsample", *BENCH, *MORE)
    while bench.poll() is None and not (record.exists() and record.read_bytes().endswith(b"\n")):
        time.sleep(0.05)
    status, out, err = run(*BENCH)
    assert (status, out) == (2, "")
    assert err == "error: --out = 'bench': another run writes there now; wait for it, or choose another folder\n"
    bench.send_signal(signal.SIGINT)
    _, told = bench.communicate(timeout=120)
    assert bench.returncode == 130
    assert "Traceback" not in told
    lines = [json.loads(line) for line in record.read_bytes().splitlines()]
    kept = "1 result" if len(lines) == 1 else f"{len(lines)} results"
    assert told.splitlines()[-1] == (
        f"interrupted: {kept} kept in bench/results.jsonl; the same command goes on from there"
    )
    assert not (tmp_path / "bench" / LOCK).exists()
    first = "threshold:confidence=0.5"
    status, out, err = run(*BENCH)
    assert status == 0
    assert [json.loads(line) for line in record.read_bytes().splitlines()] == lines  # it was there
    assert first in out


def test_the_lock_of_a_dead_process_blocks_nobody(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from fastsample.cli.files import output_folder\n"
    code += "with output_folder(Path('out'), alone=True): print('held', flush=True); time.sleep(600)"
    holder = start(tmp_path, "-c", code)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another run writes there now"), output_folder(tmp_path / "out", alone=True):
        pass
    holder.kill()
    holder.communicate()
    assert (tmp_path / "out" / LOCK).exists()
    with output_folder(tmp_path / "out", alone=True) as folder:
        (folder / "file").write_text("x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), output_folder(tmp_path / "a" / "b", alone=True):
        raise ValueError("wrong")
    assert list(tmp_path.iterdir()) == []
    with output_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("x")
    assert (tmp_path / "a" / "b" / "file").exists()


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told_with_the_file_and_loses_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ["bench", "--decode", "--problems", "8", "--rule", "threshold"]
    assert run(*one, "--out", "b")[0] == 0
    before = (tmp_path / "b" / "results.jsonl").read_bytes()
    for other in (["--rule", "margin:steps=8"], ["--no-resume"]):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            status, _, err = run(*one, "--out", "b", *other)
        assert status == 2
        assert err.splitlines()[-1] == (
            "error: b/results.jsonl: No space left on device: free some space; what was written before is kept"
        )
        assert (tmp_path / "b" / "results.jsonl").read_bytes().startswith(before)
        assert [path.name for path in (tmp_path / "b").iterdir()] == ["results.jsonl"]
    monkeypatch.setattr("tempfile.TemporaryFile", full)
    assert run(*one, "--out", "c")[2].startswith("error: --out = 'c' is no folder that can be written to (No space")
    assert not (tmp_path / "c").exists()


def fail_after(partial: Path, error: Exception) -> None:
    partial.write_text("half")
    raise error


def test_errors_of_the_system_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    for error in (OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: full (os error 28)")):
        with pytest.raises(OSError, match="file") as caught, replacing(path) as partial:
            fail_after(partial, error)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("file", "before")]
    with pytest.raises(RuntimeError, match="other"), naming(path):
        raise RuntimeError("other")
    with pytest.raises(OSError, match="image") as caught:
        place(tmp_path, "image.png", full)
    assert caught.value.filename == str(tmp_path / "image.png")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastsample", "solvers"]
    with Path("/dev/full").open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "No space left on device" in done.stderr


def test_records_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    ours = b'{"key": "a", "value": 1}\n'
    for text, line in (
        (b"milk\n", 1),
        (ours + b"milk", 2),
        (ours + b"\n" + b"{}\n", 3),
        (ours + b'{"key": 3}\n', 2),
        (bytes(range(128, 256)) * 9, 1),
        (b"\x89PNG\r\n\x1a\n\0\0", 2),
    ):
        for resume in (True, False):
            path.write_bytes(text)
            with pytest.raises(ValueError, match=rf"results.jsonl holds a line that is no result.*\(line {line}\)"):
                Record(path, resume=resume)
            assert path.read_bytes() == text


def test_help_is_whole() -> None:
    """No word of it is taken for markup."""
    for name, command in commands().items():
        ctx = command.make_context(f"fastsample {name}", [], resilient_parsing=True, **main.HELP)
        help_text = " ".join(command.get_help(ctx).split()).replace("- ", "-")
        for param in command.params:
            told = " ".join(param.help.split()).replace("- ", "-")
            assert told in help_text, (name, param.name)
            assert len(told) > 3


def test_version_and_help_by_one_letter(run: Any) -> None:
    assert run("--version") == (0, f"fastsample {__version__}\n", "")
    for arguments in ([], ["bench"], ["tarflow"], ["tarflow", "plan"]):
        status, out, err = run(*arguments, "-h")
        assert (status, err) == (0, "")
        assert out == run(*arguments, "--help")[1]
    status, _, err = run("tarflow")
    assert status == 2
    assert err.startswith("Usage: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes(run: Any, monkeypatch: pytest.MonkeyPatch, shell: str) -> None:
    monkeypatch.setenv("_FASTSAMPLE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COMP_WORDS", "fastsample tarflow pl")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "fastsample tarflow pl")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert "plan" in run()[1]


@pytest.mark.parametrize("name", [param.name for param in commands()["bench"].params if param.name not in DECODING])
def test_every_option_of_bench_that_decode_leaves_without_effect_is_refused_there(run: Any, name: str) -> None:
    (param,) = (one for one in commands()["bench"].params if one.name == name)
    status, _, err = run("bench", "--decode", param.opts[0], *([] if param.is_flag else ["1"]))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {param.opts[0]}")
    assert "with --decode" in err


@pytest.mark.parametrize("columns", ["0", "20", "none", "200"])
def test_tables_are_whole_at_any_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table("sampler", title="of [red]")
    table.add_row("x" * 50 + "[bold]")
    tables.show(table)
    out = capsys.readouterr().out
    assert "x" * 50 + "[bold]" in out
    assert "of [red]" in out


def test_progress_is_a_line_each_with_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    told = following(iter("abc"), total=5, done=2, describe=lambda letter: f"letter {letter}")
    assert list(told) == ["a", "b", "c"]
    assert counting(lambda tell: tell("found") or 7) == 7
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(";")[0] for line in lines] == ["3/5  letter a", "4/5  letter b", "5/5  letter c", "found"]
    assert [line.endswith(" left") for line in lines] == [True, True, False, False]


def test_nothing_is_kept_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither references nor stages, nor what commands write without --out."""
    monkeypatch.delenv("FASTSAMPLE_CACHE", raising=False)
    defaults = [
        Path(str(param.default)) for one in commands().values() for param in one.params if param.name == "out"
    ]
    for path in (cache_folder(), *(path for path in defaults if str(path) != "None")):
        assert not path.is_relative_to(PACKAGE)
        assert path.is_relative_to(Path.home()) or not path.is_absolute()
