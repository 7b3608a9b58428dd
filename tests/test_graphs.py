"""The captured step, run without a graph where there is no GPU, does what `integrate` does; with one, replays it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from fastsample_kernels import use_backend
from torch import Tensor

import fastsample as fs
from fastsample.solvers import available

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
VP = fs.NoiseSchedule.linear_vp()
TIMES = np.linspace(1.0, 0.05, 7)


def model(x: Tensor, t: Any) -> Tensor:
    return 0.9 * torch.tanh(x) + 0.1 * torch.as_tensor(t, dtype=x.dtype, device=x.device)


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(DEVICE, dtype)


@pytest.mark.parametrize("name", available())
def test_replayed_steps_are_the_tables(name: str) -> None:
    solver = available()[name]
    for order in solver.orders or (None,):
        table = fs.build_table(name, VP, TIMES, **({"order": order} if order else {}))
        generators = [torch.Generator().manual_seed(1) for _ in range(3)]
        want = fs.integrate(table, model, start(), generator=generators[0])
        loop = fs.GraphedLoop(table, model, start())
        for generator in generators[1:]:  # a second run is not poisoned by the first
            got = loop.run(start(), generator)
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5 * float(want.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    table = fs.build_table("unipc", VP, TIMES)
    got = fs.GraphedLoop(table, model, start(dtype)).run(start(dtype))
    assert got.dtype == dtype
    want = fs.integrate(table, model, start(torch.float64))
    tolerance = 5e-3 if dtype == torch.float16 else 1e-6  # the time is float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * float(want.abs().max()))


def test_with_the_kernel() -> None:
    pytest.importorskip("triton")
    table = fs.build_table("hb-dpmpp-2m", VP, TIMES)
    want = fs.GraphedLoop(table, model, start()).run(start())
    with use_backend("triton"):
        got = fs.GraphedLoop(table, model, start()).run(start())
    torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)


def test_a_guided_unet_in_the_loop() -> None:
    """Stable Diffusion's own loop, written as a model of x and t."""
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = fs.DPMSolverScheduler.from_config(pipe.scheduler.config)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    want = pipe(
        "a small red circle", latents=latents, num_inference_steps=6, guidance_scale=4.0, output_type="latent"
    ).images
    positive, negative = pipe.encode_prompt("a small red circle", "cpu", 1, True)
    text = torch.cat([negative, positive])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        uncond, cond = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=text).sample.chunk(2)
        return uncond + 4.0 * (cond - uncond)

    table = pipe.scheduler._run.table
    got = fs.GraphedLoop(table, guided, latents, denoiser=pipe.unet).run(latents)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_replayed_is_refused() -> None:
    table = fs.build_table("dpmpp-2m", VP, TIMES)
    loop = fs.GraphedLoop(table, model, start())
    with pytest.raises(ValueError, match="the loop was made for"):
        loop.run(start()[:1])
    with pytest.raises(ValueError, match="the loop was made for"):
        loop.run(start(torch.float64))
    pipe = pipelines.stable_diffusion()
    with fs.TGate(2).apply(pipe), pytest.raises(ValueError, match="has hooks, which replaced its forward"):
        fs.GraphedLoop(table, model, start(), denoiser=pipe.unet)
    wide = fs.build_table("hb-dpmpp-2m", VP, TIMES, dualfast=0.1)
    with pytest.raises(ValueError, match="has room for"):
        fs.GraphedLoop(wide, model, start())
    with pytest.raises(ValueError, match="model output has shape"):
        fs.GraphedLoop(table, lambda x, t: x[:1], start()).run(start())
