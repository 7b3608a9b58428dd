"""A solver is one file: dropped into the package it is there everywhere, and its tests come by themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
RULE = '''"""DPM-Solver++ 2M, written once more."""

from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.registry import log_step, solver
from fastsample.tables.row import Row, Weights, ddim_weights


@solver("scratch-2m", order=2, space="data", references=("arXiv:2211.01095",))
def scratch(nodes: Sequence[Node], target: Node, *, order: int = 2, lean: float = 0.5) -> Row:
    """Second order, one model call a step, by the slope between the last two predictions."""
    source = nodes[-1]
    weights = ddim_weights(source, target)
    if order == 1:
        return Row(source, target, weights, "data")
    slope = lean * weights.data * log_step(source, target) / log_step(nodes[-2], source)
    return Row(source, target, Weights(weights.sample, history=(weights.data + slope, -slope)), "data")
'''
USES = '''
import json, sys
from pathlib import Path

import numpy as np
import pipelines
import torch
from fastsample_kernels import use_backend
from PIL import Image

import fastsample as fs
from fastsample.cli import main

assert Path(fs.__file__).is_relative_to(Path.cwd())
VP, TIMES = fs.NoiseSchedule.linear_vp(), np.linspace(1.0, 0.02, 9)
x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def model(x, t):
    return 0.9 * torch.tanh(x) + 0.1 * torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def alike(use):
    """The same as the solver that it is a copy of."""
    ours, theirs = use("scratch-2m"), use("dpmpp-2m")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(ours).all()


def command(*arguments):
    sys.argv = ["fastsample", *arguments]
    try:
        main.run()
    except SystemExit as stop:
        return stop.code


def table(name):
    return fs.build_table(name, VP, TIMES)


def fused(name):
    with use_backend("triton"):
        return fs.integrate(table(name), model, x)


def in_a_pipeline(name):
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = fs.create_scheduler(name, pipe.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    return pipe("a red circle", num_inference_steps=6, output_type="latent", generator=generator).images


def in_a_parallel_pipeline(name):
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = fs.create_scheduler(name, pipe.scheduler.config)
    generator = torch.Generator().manual_seed(0)
    with fs.parallelise(pipe, window=4, tolerance=0.0):
        return pipe("a red circle", num_inference_steps=6, output_type="latent", generator=generator).images


def on_the_command_line(name):
    assert command("sample", "--model", "tiny", "--solver", name, "--prompt", "a red circle", "--out", name) == 0
    return torch.from_numpy(np.array(Image.open(f"{name}/prompt000-seed0.png"), dtype=np.float32))


assert "scratch-2m" in fs.available_solvers()
assert fs.available_solvers()["scratch-2m"].options == {"lean": 0.5}
alike(lambda name: fs.integrate(table(name), model, x))
alike(fused)
alike(lambda name: fs.GraphedLoop(table(name), model, x).run(x))
alike(lambda name: fs.integrate_parallel(table(name), model, x)[0])
alike(in_a_pipeline)
alike(in_a_parallel_pipeline)
pipelines.stable_diffusion().save_pretrained("tiny")
alike(on_the_command_line)
options = ("--prompt", "a", "--model", "tiny", "--option", "lean=0.4", "--out", "leaning")
assert command("sample", "--solver", "scratch-2m", *options) == 0
assert command("sample", "--solver", "scratch-2m", "--option", "leen=0.4") == 2
assert command("solvers", "--json") == 0
'''
TESTED = ("test_solvers.py", "test_graphs.py", "test_fused.py")
"""Some of the tests that go through the registry."""
TESTS = f"""
import pytest
tests = [f"tests/{{name}}" for name in {TESTED!r}]
assert pytest.main(["-q", "-rA", "-k", "scratch-2m", *tests]) == 0
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """By the uses and then by the tests, in one process in a copy of packages and tests with one file more.

    The copy is without weights.
    """
    folder = tmp_path_factory.mktemp("scratch")
    for name in ("fastsample", "kernels", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "fastsample" / "solvers" / "scratch.py").write_text(RULE)
    paths = os.pathsep.join(str(folder / name) for name in ("", "kernels", "tests"))
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", USES + TESTS]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_one_file_is_all_it_takes(printed: str) -> None:
    assert '"name": "scratch-2m"' in printed


def test_its_tests_come_by_themselves(printed: str) -> None:
    passed = [line.split("::") for line in printed.splitlines() if line.startswith("PASSED")]
    assert {Path(file.split()[1]).name for file, _ in passed} == set(TESTED)
    assert len(passed) >= 6
