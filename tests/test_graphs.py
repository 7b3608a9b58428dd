"""The captured step, run without a graph where there is no GPU, does what `integrate` does; with one, replays it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
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


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "dpmpp-2m-sde", "ghvb", "unipc"])
def test_guidance_in_the_launch_is_guidance_in_the_model(name: str) -> None:
    """One scale or one a step, changed from run to run without another capture."""
    table = fs.build_table(name, VP, TIMES)

    def branches(x: Tensor, t: Any) -> Tensor:
        return torch.cat([model(x, t), model(0.5 * x, t)])

    def guided(x: Tensor, t: Any) -> Tensor:
        unconditional, conditional = branches(x, t).chunk(2)
        scale = scales[int(np.argmin(np.abs(TIMES - float(t))))]
        return unconditional + scale * (conditional - unconditional)

    loop = fs.GraphedLoop(table, branches, start(), guided=True)
    for scale in (3.0, list(np.linspace(5.0, 1.0, 6))):
        scales = [scale] * 6 if isinstance(scale, float) else scale
        want = fs.integrate(table, guided, start(), generator=torch.Generator().manual_seed(1))
        got = loop.run(start(), torch.Generator().manual_seed(1), guidance_scale=scale)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
    with pytest.raises(ValueError, match="guidance_scale = None: give a number"):
        loop.run(start())
    with pytest.raises(ValueError, match="one for each of 6 steps"):
        loop.run(start(), guidance_scale=[1.0, 2.0])
    with pytest.raises(ValueError, match="the model guides"):
        fs.GraphedLoop(table, model, start()).run(start(), guidance_scale=2.0)
    with pytest.raises(ValueError, match="model output has shape"):
        fs.GraphedLoop(table, model, start(), guided=True).run(start(), guidance_scale=2.0)


def test_a_run_may_end_with_what_decodes() -> None:
    table = fs.build_table("dpmpp-3m", VP, TIMES)
    weight = torch.ones(2, 3, 4, device=DEVICE)
    loop = fs.GraphedLoop(table, model, start(), decode=lambda x: (x * weight).tanh())
    first, second = loop.run(start()), loop.run(0.5 * start())
    torch.testing.assert_close(first, fs.integrate(table, model, start()).tanh(), rtol=1e-4, atol=1e-4)
    assert not torch.equal(first, second)  # each is the caller's own


def test_a_step_copies_no_history() -> None:
    """The model, and one launch whose outputs take the place of what nobody reads again."""
    table = fs.build_table("ghvb", VP, np.linspace(1.0, 0.05, 12), order=4)
    loop = fs.GraphedLoop(table, model, start())
    calls: list[str] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    assert loop._phases == 3
    for phase in range(3):
        with Count(), torch.no_grad():
            loop._step(phase)
        assert "fastsample.linear_step_out.default" in calls
        assert not any("copy_" in call for call in calls if "_to_copy" not in call), calls
        calls.clear()


def test_a_pipelines_denoisers_as_graphs() -> None:
    """Equal to the pipeline's own images, sequentially and in rounds of constant rows, and nothing stays."""
    pipe = pipelines.stable_diffusion().to(DEVICE)
    pipe.scheduler = fs.DPMSolverScheduler.from_config(pipe.scheduler.config)

    def run(call: Any, prompt: str = "a small red circle") -> Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 6, "guidance_scale": 4.0, "output_type": "latent"}
        return call(prompt, generator=generator, **options).images

    want, other = run(pipe), run(pipe, "a large blue square")
    with fs.graphs(pipe) as counts:
        torch.testing.assert_close(run(pipe), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(run(pipe, "a large blue square"), other, rtol=1e-4, atol=1e-4)
        assert (counts.captured, counts.replayed, counts.plain) == (1, 11, 0)
        sampler = fs.ParallelSampler(pipe, iteration="secant", window=3, tolerance=0.0)
        torch.testing.assert_close(run(sampler), want, rtol=1e-3, atol=1e-3)
        assert counts.captured == 2  # every round has the same number of rows
        with pytest.raises(ValueError, match=r"replayed by fastsample\.graphs"):
            fs.TGate(2).apply(pipe)
        hooks = HookRegistry.check_if_exists_or_initialize(pipe.unet)
        hooks.register_hook(ModelHook(), "another")
        with pytest.raises(ValueError, match="has been given hooks inside"):
            run(pipe)
        hooks.remove_hook("another")
    assert "forward" not in vars(pipe.unet)
    with fs.graphs(pipe.unet, shapes=1) as counts, torch.no_grad():
        text = torch.zeros(2, 77, pipe.unet.config.cross_attention_dim, device=DEVICE)
        for rows in (1, 2, 1, 2):
            x = torch.randn(rows, 4, 8, 8, device=DEVICE)
            got = pipe.unet(x, 3, encoder_hidden_states=text[:rows]).sample
            assert got.shape == x.shape
    assert (counts.captured, counts.replayed, counts.plain) == (1, 1, 2)
    with fs.TGate(2).apply(pipe), pytest.raises(ValueError, match="has hooks"), fs.graphs(pipe):
        pass
    with pytest.raises(ValueError, match="no denoiser"), fs.graphs(object()):
        pass
