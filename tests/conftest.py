"""Settings that must stand before the first import."""

from __future__ import annotations

import importlib.abc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # a worker a core

import pytest


class InterpretedKernels(importlib.abc.MetaPathFinder):
    """Where there is no GPU, Triton's interpreter runs the kernels: told when they, or Triton, are first imported.

    Not sooner, as it takes torch to tell, which the tests of schedules, tables and solvers do without.
    """

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname in ("triton", "fastsample_kernels"):
            import torch

            if not torch.cuda.is_available():
                os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it where a kernel is decorated


sys.meta_path.insert(0, InterpretedKernels())


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
