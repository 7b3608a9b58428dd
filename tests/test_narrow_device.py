"""Everything that runs a table runs where there is no float64, with tensors on a device and weights on the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from narrow_device import NARROW, NarrowDevice, on_device
from torch import Tensor

import fastsample as fs
from fastsample.fixed_point import integrate_parallel
from fastsample.fixed_point.text import _gumbel
from fastsample.fixed_point.updates import UPDATES
from fastsample.sampling import draw_noise, integrate_adaptive
from fastsample.sampling.noise import draw
from fastsample.solvers import available

VP = fs.NoiseSchedule.linear_vp()
TIMES = np.linspace(1.0, 0.05, 8)


def model(x: Tensor, t: Any) -> Tensor:
    time = t if isinstance(t, float) else t.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return 0.9 * torch.tanh(x) + 0.1 * time


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_the_device_has_no_float64() -> None:
    x = on_device(torch.ones(2))
    with NarrowDevice():
        assert (x + torch.zeros(2, device=NARROW)).device == NARROW
        assert x.cpu().double().device.type == "cpu"
        for wrong in (
            x.double,
            lambda: torch.zeros(2, dtype=torch.float64, device=NARROW),
            lambda: x.to(torch.float64),
        ):
            with pytest.raises(TypeError, match="no float64"):
                wrong()
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", available())
def test_the_loop(name: str, dtype: torch.dtype) -> None:
    table = fs.build_table(name, VP, TIMES)
    want = fs.integrate(table, model, start(dtype), generator=torch.Generator().manual_seed(1))
    with NarrowDevice():
        got = fs.integrate(table, model, on_device(start(dtype)), generator=torch.Generator().manual_seed(1))
        assert got.device == NARROW
        torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("iteration", UPDATES)
def test_parallel_sweeps(iteration: str, window: int | None) -> None:
    for name in ("ddim", "dpmpp-2m", "unipc", "dpmpp-2m-sde"):
        table = fs.build_table(name, VP, TIMES)
        for tolerance in (0.0, 0.05):
            options: dict[str, Any] = {"iteration": iteration, "window": window, "tolerance": tolerance}
            want, report = integrate_parallel(
                table, model, start(), generator=torch.Generator().manual_seed(1), **options
            )
            with NarrowDevice():
                x = on_device(start())
                got, same = integrate_parallel(table, model, x, generator=torch.Generator().manual_seed(1), **options)
                torch.testing.assert_close(got.cpu(), want)
            assert same.starts == report.starts


@pytest.mark.parametrize("order", [2, 3])
def test_adaptive_steps(order: int) -> None:
    want = integrate_adaptive(VP, model, start(), order=order)
    with NarrowDevice():
        got = integrate_adaptive(VP, model, on_device(start()), order=order)
        torch.testing.assert_close(got.sample.cpu(), want.sample)
    assert got.times == want.times


def test_graphed_loops_and_noise() -> None:
    table = fs.build_table("unipc", VP, TIMES)
    want = fs.GraphedLoop(table, model, start()).run(start())
    with NarrowDevice():
        x = on_device(start())
        torch.testing.assert_close(fs.GraphedLoop(table, model, x).run(x).cpu(), want)
        for generator in (None, torch.Generator(), [torch.Generator(), torch.Generator()]):
            assert draw_noise(x, generator).device == NARROW
            noise = draw(_gumbel, on_device(torch.zeros(2, 9)), generator)
            assert noise.device == NARROW
            assert bool(noise.isfinite().all())
