"""Steps as single launches: the same numbers as torch's, in one operation. Interpreted where there is no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fastsample_kernels import dispatch, use_backend

import fastsample as fs
from fastsample.sampling import Runner, executor
from fastsample.solvers import available

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VP = fs.NoiseSchedule.linear_vp()
MULTISTEP = [name for name, solver in available().items() if not solver.stages]


def run(runner: Runner, steps: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, *rest = torch.randn(1 + 2 * steps, 2, 3, 5, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    for index in range(steps):
        x = runner.step(index, x, rest[index], rest[steps + index])
        assert x.dtype == dtype
    return x


@pytest.mark.parametrize("name", available())
def test_launches_compute_what_torch_does(name: str) -> None:
    solver = available()[name]
    options = {"order": max(solver.orders)} if solver.orders else {}
    table = fs.build_table(name, VP, np.linspace(1.0, 0.05, 6), **options)
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float16, 4e-3), (torch.float64, 1e-10)):
        with use_backend("torch"):
            want = run(Runner(table), table.nfe, dtype)
        with use_backend("triton"):
            got = run(Runner(table), table.nfe, dtype)
        scale = float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_step_is_one_launch_and_no_read(name: str) -> None:
    scheduler = fs.create_scheduler(name, {"beta_schedule": "scaled_linear"})
    scheduler.set_timesteps(20)
    calls: list[str] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if str(func).startswith(("aten", "fastsample")):
                calls.append(str(func))
            return func(*args, **(kwargs or {}))

    x, output = torch.randn(2, 1, 4, 8, 8, device=DEVICE)
    with use_backend("triton"):
        for t in scheduler.timesteps[:8]:
            calls.clear()
            with Count():
                x = scheduler.step(output, t, x, return_dict=False)[0]
    launches = [call for call in calls if "linear_step" in call]
    assert len(launches) == 1
    assert len(calls) <= 3, calls
    assert not any("_local_scalar_dense" in call for call in calls)


def test_a_run_may_change_its_backend() -> None:
    """What one made, the other reads."""
    table = fs.build_table("unipc", VP, np.linspace(1.0, 0.05, 6))
    with use_backend("torch"):
        want = run(Runner(table), 5, torch.float32)
    runner = Runner(table)
    generator = torch.Generator().manual_seed(0)
    x, *rest = torch.randn(11, 2, 3, 5, generator=generator, dtype=torch.float64).to(DEVICE, torch.float32)
    for index in range(5):
        with use_backend("triton" if index % 2 else "torch"):
            x = runner.step(index, x, rest[index], rest[5 + index])
    torch.testing.assert_close(x, want, rtol=2e-5, atol=2e-5)


def test_missing_noise_is_an_error() -> None:
    table = fs.build_table("dpmpp-2m-sde", VP, [0.9, 0.5, 0.1])
    x = torch.zeros(1, 1, device=DEVICE)
    for backend in ("torch", "triton"):
        with use_backend(backend), pytest.raises(ValueError, match="noise = None"):
            Runner(table).step(0, x, x)


def test_small_steps_of_few_operations_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the measured rule, where nothing is forced; larger, narrower or longer ones are launches."""
    monkeypatch.setattr(dispatch, "runs_triton", lambda device: True)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    few = fs.build_table("ddim", VP, [0.9, 0.5, 0.1])
    many = fs.build_table("dpmpp-2m", VP, [0.9, 0.5, 0.1])
    assert few.lowered.operations == 2
    monkeypatch.setattr(executor, "FEW", 2)
    monkeypatch.setattr(executor, "SMALL", 100)
    small, large = torch.zeros(100, device=DEVICE), torch.zeros(101, device=DEVICE)
    assert [Runner(few)._fuses(x) for x in (small, large, small.half())] == [False, True, True]
    assert Runner(many)._fuses(small)
    runner = Runner(few)
    for backend in ("torch", "triton"):
        with use_backend(backend):
            assert runner._fuses(small) == runner._fuses(large) == (backend == "triton")
        monkeypatch.setenv(dispatch.VARIABLE, backend)
        assert Runner(few)._fuses(small) == (backend == "triton")
