"""Settings that must stand before the first import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")):
    os.environ["TRITON_INTERPRET"] = "1"  # no GPU: Triton's interpreter, chosen where a kernel is decorated
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a worker a core

import pytest


@pytest.fixture(params=["torch", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each test once by each backend of the kernels."""
    from fastsample_kernels import use_backend

    with use_backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of converged references for all tests: they are named by the hash of what they depend on."""
    return tmp_path_factory.mktemp("references")


@pytest.fixture
def run(  # type: ignore[no-untyped-def]
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, references: Path
):
    """Call the command in this process, in a folder of its own; (exit status, stdout, stderr)."""
    from fastsample.cli import main

    monkeypatch.setenv("FASTSAMPLE_CACHE", str(references))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastsample", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call
