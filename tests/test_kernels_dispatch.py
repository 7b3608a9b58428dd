"""Which backend runs, what is said when it cannot, and that every kernel compiles for a GPU that is not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from fastsample_kernels import _device, blocks, choose_backend, dispatch, linear_step, use_backend

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def run(code: str, **environment: str) -> str:
    """Output of a fresh interpreter without TRITON_INTERPRET."""
    full = {**os.environ, "PYTHONPATH": str(ROOT / "kernels"), **environment}
    full.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=full, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_device_chooses() -> None:
    assert choose_backend(CPU) == "torch"
    assert choose_backend(CUDA) == "triton"


def test_a_gpu_without_triton_runs_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_problem", lambda: "Triton is not installed")
    assert choose_backend(CUDA) == "torch"


@pytest.mark.parametrize("name", ["torch", "triton", "Torch"])
def test_the_variable_forces(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, name)
    assert choose_backend(CPU) == choose_backend(CUDA) == name.lower()
    with use_backend("torch"):
        assert choose_backend(CUDA) == "torch"


def test_use_backend_nests_and_ends() -> None:
    with use_backend("triton"):
        with use_backend("torch"):
            assert choose_backend(CUDA) == "torch"
        with pytest.raises(ZeroDivisionError), use_backend("torch"):
            1 / 0  # noqa: B018
        assert choose_backend(CPU) == "triton"
        found = []
        thread = threading.Thread(target=lambda: found.append(choose_backend(CPU)))
        thread.start()
        thread.join()
        assert found == ["torch"]  # another thread is not forced
    assert choose_backend(CPU) == "torch"


def test_wrong_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend = 'cuda': give"), use_backend("cuda"):  # type: ignore[arg-type]
        pass
    monkeypatch.setenv(dispatch.VARIABLE, "cuda")
    with pytest.raises(ValueError, match="FASTSAMPLE_KERNELS = 'cuda': set it to auto, torch or triton"):
        choose_backend(CPU)


def test_triton_forced_and_missing_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "triton_problem", lambda: "Triton is not installed")
    line = r"^use_backend.* forces Triton, but Triton is not installed: install triton or use .*$"
    with pytest.raises(RuntimeError, match=line), use_backend("triton"):
        pass
    monkeypatch.setenv(dispatch.VARIABLE, "triton")
    with pytest.raises(RuntimeError, match="FASTSAMPLE_KERNELS forces Triton, but"):
        linear_step([torch.zeros(2)], torch.ones(1, 1, 1), torch.tensor(0))


def test_triton_forced_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "interpreting", lambda: False)
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"do not run on cpu tensors.*TRITON_INTERPRET=1"):
        choose_backend(CPU)


def test_what_is_wrong_with_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    problem = _device.triton_problem.__wrapped__
    assert problem() == ""
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    assert problem() == "Triton 3.1.0 is older than 3.3"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problem() == "Triton is not installed"


def test_the_package_works_without_triton() -> None:
    code = (
        "import sys, torch; from fastsample_kernels import *; assert 'triton.language' not in sys.modules;"
        "sys.modules['triton'] = None;"
        "x = torch.ones(2, 3); (y,) = linear_step([x, x], torch.ones(1, 1, 2), torch.tensor(0));"
        "print(y.sum().item(), token_statistics(x).token.tolist())\n"
        "try:\n    use_backend('triton').__enter__()\nexcept RuntimeError as error:\n    print(error)"
    )
    first, second = run(code).splitlines()
    assert first == "12.0 [0, 0]"
    assert "Triton is not installed" in second


def test_block_sizes_are_read_once_and_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def config(operations: dict[str, dict[str, int]]) -> blocks.Config:
        path = tmp_path / "blocks.json"
        path.write_text(json.dumps({"cpu": operations, "cuda:1": {}}))
        monkeypatch.setenv(blocks.VARIABLE, str(path))
        blocks.forget()
        return blocks.block_config("linear_step", CPU)

    try:
        assert config({}) == blocks.DEFAULTS["linear_step"]
        assert config({"linear_step": {"block": 512}}) == {**blocks.DEFAULTS["linear_step"], "block": 512}
        with pytest.raises(ValueError, match=r"linear_stop .* is not one of"):
            config({"linear_stop": {"block": 512}})
        with pytest.raises(ValueError, match=r"blocks\.json: linear_step .*blocks"):
            config({"linear_step": {"blocks": 512}})
    finally:
        blocks.forget()


A_GPU = """
import json, torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit
from fastsample_kernels import *
from fastsample_kernels import dispatch

class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=0: 0)

driver.set_active(Driver())
dispatch.runs_triton = lambda device: True
"""

COMPILE = """
compiled, launch = [], jit.JITFunction.run

def compile_only(self, *args, grid, warmup, **kwargs):
    kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
    compiled.append((self.fn.__name__, kernel.asm["ptx"].count("ld.global.v4"), kernel.metadata.shared))
    return kernel

jit.JITFunction.run = compile_only
f, h, b, d = torch.float32, torch.float16, torch.bfloat16, torch.float64
i, one = torch.tensor, torch.ones(1)

def x(*shape, dtype=f):
    return torch.zeros(shape, dtype=dtype)

large, gumbel = (2, 4, 64, 64), Gumbel(one, i(1), i(0))
linear_step([x(*large), x(*large, dtype=h)], x(20, 1, 2), i(0))
inputs = [x(*large, dtype=dtype) for dtype in (f, h, b, f, f, f, f, f, h, b)]
linear_step(inputs, x(20, 3, 10), i([0, 1]), dtypes=(h, f, b))
linear_step([x(2, 1)], x(1, 1, 1), i([0, 1]))
linear_step([x(2, 63), x(2, 63, dtype=d)], x(20, 2, 2), i(0), dtypes=(d, f))
token_statistics(x(600, 32000, dtype=b))
token_statistics(x(2, 20001, dtype=h), temperature=torch.ones(2), gumbel=gumbel)
token_statistics(x(1, 1))
triangular_mix(x(20), x(4096), x(20, 20), x(20, 4096, dtype=h))
print(json.dumps(compiled))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    """What the interpreter lets pass (types, constants, tuples in loops) the compiler sees; down to the binary."""
    compiled = json.loads(run(A_GPU + COMPILE, TRITON_CACHE_DIR=str(tmp_path)))
    names = [name for name, _, _ in compiled]
    assert names.count("_kernel") == 5
    assert {"_scan_kernel", "_combine_kernel"} <= set(names)
    _, wide_loads, shared_memory = compiled[0]
    assert wide_loads >= 1  # float32 is read 16 bytes a thread
    assert shared_memory == 0  # and mixed dtypes need no exchange between threads


SOLVERS = """
import numpy as np
import fastsample as fs
from fastsample.sampling import Runner
from fastsample.solvers import available

kernels, launch = [], jit.JITFunction.run

def compile_only(self, *args, grid, warmup, **kwargs):
    kernels.append(id(launch(self, *args, grid=grid, warmup=True, **kwargs)))

jit.JITFunction.run = compile_only
schedule, found = fs.NoiseSchedule.linear_vp(), {}
for name, solver in available().items():
    for order in solver.orders or (None,):
        table = fs.build_table(name, schedule, np.linspace(1, 0.01, 21), **({"order": order} if order else {}))
        for dtype in (torch.bfloat16, torch.float32):
            kernels.clear()
            runner, x, noise = Runner(table), torch.zeros(1, 4, 8, 8, dtype=dtype), torch.zeros(1, 4, 8, 8)
            with use_backend("triton"):
                runner.prepare(x)
                before = set(kernels)
                for index in range(table.nfe):  # the last step of most adds no noise
                    x = runner.step(index, x, x, noise if table.steps[index].next.noise else None)
            found[f"{name} {order} {dtype}"] = len(before), len(set(kernels)), len(kernels) - table.nfe
print(json.dumps(found))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_a_solver_is_one_kernel_compiled_before_its_loop(tmp_path: Path) -> None:
    """From the first step to the last, through the warm-up and the lowered end, of every solver at every order."""
    code, path = A_GPU + SOLVERS, f"{ROOT / 'kernels'}{os.pathsep}{ROOT}"
    found = json.loads(run(code, TRITON_CACHE_DIR=str(tmp_path), PYTHONPATH=path))
    assert len(found) >= 60
    assert {name: counts for name, counts in found.items() if counts != [1, 1, 1]} == {}
