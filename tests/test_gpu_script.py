"""`scripts/gpu` in tiny sizes, without a GPU: every part runs, is on disk as it ends, and is in the table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`scripts/gpu` by this interpreter, in one thread."""
    folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts/gpu"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_smoke_runs_every_part(tmp_path: Path) -> None:
    done = run("--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    parts = [line.split()[0] for line in done.stdout.splitlines() if " s  " in line]
    assert len(parts) >= 13
    page = (tmp_path / "README.md").read_text()
    for name in parts:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert {"device", "torch", "triton", "diffusers", "commit", "time"} <= set(found["about"])
        assert f"## {name}\n" in page
        if name in ("compiled", "sanitizer"):
            assert found["stopped"] == "skipped: no GPU here"
            assert any(line.startswith(f"{name} ") and "SKIPPED" in line for line in done.stdout.splitlines())
        else:
            assert found["stopped"] is None
            assert found["records"]
    speed = json.loads((tmp_path / "speed.json").read_text())["records"][1]
    assert {"us", "us_q1", "us_q3", "floor_us"} <= set(speed)


def test_time_is_kept_and_wrong_parts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from gpu_parts import __main__ as script

    def call(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["gpu", *arguments])
        script.main()
        return capsys.readouterr()

    call("--smoke", "--parts", "kernels,graph", "--seconds", "6", "--out", str(tmp_path))
    stopped = json.loads((tmp_path / "graph.json").read_text())["stopped"]
    assert stopped is None or "time" in stopped or "were over" in stopped
    assert "SKIPPED: no GPU here" in call("--list").out
    with pytest.raises(SystemExit) as refused:
        call("--parts", "kernel", "--smoke")
    assert refused.value.code == 2
    assert "--parts kernel: choose among kernels,host," in capsys.readouterr().err
