"""`pred_original_sample`: the data prediction of the last step, whatever the model and solver; and it drawn."""

from __future__ import annotations

import copy
import sys
import types
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from pipelines import SD_CONFIG, quiet, stable_diffusion
from torch import Tensor
from zoo import ZOO

import fastsample as fs
from fastsample.pipelines.latents import decode
from fastsample.pipelines.preview import linear_decoder, to_images
from fastsample.tables.table import output_of
from fastsample.testing import run_scheduler

CLEAN = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(5))
FLOW = {"shift": 3.0, "num_train_timesteps": 1000}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "prediction_type": "epsilon"}
MODELS: dict[str, dict[str, Any]] = {
    "eps": SD_CONFIG,
    "v": {**SD_CONFIG, "prediction_type": "v_prediction"},
    "sample": {**SD_CONFIG, "prediction_type": "sample"},
    "flow": FLOW,
    "edm": EDM,
}
SOLVERS = ("ddim", "dpmpp-2m", "ghvb", "unipc", "heun", "dpmpp-2m-sde", "dpmpp-sde", "res-3s")


def seen(scheduler: Any, dtype: torch.dtype = torch.float32) -> list[Tensor | None]:
    """What `pred_original_sample` is after each step of a run whose network knows `CLEAN`."""
    scheduler.set_timesteps(5)
    schedule, kept = scheduler.schedule, []
    x = (0.3 * torch.randn(CLEAN.shape, generator=torch.Generator().manual_seed(1)) + 0.1).to(dtype)
    data = CLEAN / schedule.data_scale
    for t in scheduler.timesteps:
        step = scheduler.state().table.steps[scheduler.step_index or 0]
        node = step.node
        noise = (x.double() - node.alpha * data) / node.sigma
        output = output_of(node, scheduler._setup.output_type, data.double(), noise).to(dtype)
        assert scheduler.pred_original_sample is None or kept
        x = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
        kept.append(scheduler.pred_original_sample)
    return kept


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_after_every_step_and_stage_it_is_the_clean_sample(solver: str, model: str) -> None:
    for data in seen(fs.create_scheduler(solver, MODELS[model])):
        assert data is not None
        torch.testing.assert_close(data, CLEAN, rtol=1e-3, atol=2e-3)


def test_it_is_what_the_step_returns_and_costs_nothing_until_asked() -> None:
    scheduler = fs.DPMSolverScheduler.from_config(SD_CONFIG)
    assert scheduler.pred_original_sample is None
    scheduler.set_timesteps(4)
    x = CLEAN.half()
    out = scheduler.step(x, scheduler.timesteps[0], x)
    assert torch.equal(scheduler.pred_original_sample, out.pred_original_sample)
    assert scheduler.pred_original_sample.dtype == torch.float16
    with mock.patch("fastsample.schedulers.base.combine", side_effect=AssertionError("made before it was asked for")):
        scheduler.step(x, scheduler.timesteps[1], out.prev_sample, return_dict=False)
    kept = scheduler.state()
    want = scheduler.pred_original_sample
    assert kept.last is None
    scheduler.set_timesteps(4)
    assert scheduler.pred_original_sample is None
    assert want is not None


def test_it_keeps_no_graph_alive() -> None:
    scheduler = fs.DDIMScheduler.from_config(SD_CONFIG)
    scheduler.set_timesteps(2)
    output = CLEAN.clone().requires_grad_()
    out = scheduler.step(2 * output, scheduler.timesteps[0], CLEAN)
    assert out.pred_original_sample.requires_grad
    assert not scheduler.pred_original_sample.requires_grad


def test_clipping_and_thresholds_are_in_it() -> None:
    scheduler = fs.DDIMScheduler.from_config(SD_CONFIG, clip_sample=True)
    assert run_scheduler(scheduler, lambda x, t: 3 * x, CLEAN, 3).isfinite().all()
    assert float(scheduler.pred_original_sample.abs().max()) == 1.0


@pytest.mark.parametrize("config", [SD_CONFIG, FLOW], ids=["vp", "flow"])
def test_with_a_time_for_each_row(config: dict[str, Any]) -> None:
    scheduler = fs.DDIMScheduler.from_config(config)
    scheduler.set_timesteps(5)
    times = scheduler.timesteps[[1, 3]]
    out = scheduler.step(CLEAN.sin(), times, CLEAN)
    assert torch.equal(scheduler.pred_original_sample, out.pred_original_sample)
    for row, t in enumerate(times):
        alone = fs.DDIMScheduler.from_config(config)
        alone.set_timesteps(5)
        alone.step(CLEAN[row : row + 1].sin(), t, CLEAN[row : row + 1])
        torch.testing.assert_close(alone.pred_original_sample[0], out.pred_original_sample[row], rtol=1e-4, atol=1e-4)


def test_each_thread_sees_its_own() -> None:
    from threading import Thread

    scheduler = fs.DDIMScheduler.from_config(SD_CONFIG)
    scheduler.set_timesteps(3)
    scheduler.step(CLEAN, scheduler.timesteps[0], CLEAN)
    found: list[Any] = []
    thread = Thread(target=lambda: found.append(scheduler.pred_original_sample))
    thread.start()
    thread.join()
    assert found == [None]
    assert scheduler.pred_original_sample is not None


# --- the callback ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["linear", "vae"])
def test_the_callback_draws_the_data_prediction(decoder: str) -> None:
    pipe = stable_diffusion()
    pipe.scheduler = fs.scheduler_from_name("DPM++ 2M Karras", pipe.scheduler.config)
    shown: list[tuple[list[Image.Image], int]] = []
    preview = fs.preview_callback(lambda images, step: shown.append((images, step)), every=2, decoder=decoder)
    call = {"prompt": ["a small red circle"] * 2, "num_inference_steps": 5, "output_type": "latent"}
    plain = pipe(**call, generator=torch.Generator().manual_seed(0)).images
    drawn = pipe(**call, generator=torch.Generator().manual_seed(0), callback_on_step_end=preview).images
    assert torch.equal(plain, drawn)
    assert [step for _, step in shown] == [0, 2, 4]
    assert preview.images is shown[-1][0]
    side = 16 if decoder == "vae" else 8
    assert [image.size for image in preview.images] == [(side, side)] * 2
    if decoder == "vae":  # the last prediction is where the run ends
        assert preview.images[0].tobytes() == to_images(decode(pipe, drawn))[0].tobytes()


def test_packed_latents_are_unpacked_by_the_pipeline() -> None:
    pipe, inputs = ZOO["flux"].build(), ZOO["flux"].inputs()
    pipe.scheduler = fs.DPMSolverScheduler.from_config(pipe.scheduler.config)
    size = {"height": 32, "width": 16}
    inputs = {**inputs, **size, "num_inference_steps": 2, "output_type": "latent"}
    preview = fs.preview_callback(decoder="vae", **size)
    pipe(**inputs, callback_on_step_end=preview)
    assert preview.images[0].size == (16, 32)
    with pytest.raises(ValueError, match=r"height, width = None, None: the 32 tokens are of no square"):
        pipe(**inputs, callback_on_step_end=fs.preview_callback())


def test_the_linear_decoder_is_that_of_a_linear_autoencoder_and_fitted_once() -> None:
    pipe = stable_diffusion()
    colours = torch.tensor([[0.1, 0.02, 0.0, -0.03], [0.0, 0.1, 0.05, 0.0], [-0.04, 0.0, 0.1, 0.02]])
    calls = []

    def decoded(latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        calls.append(latents.shape)
        z = latents * pipe.vae.config.scaling_factor
        pixels = torch.einsum("pc,bchw->bphw", colours, z)
        return (torch.nn.functional.interpolate(2 * pixels, scale_factor=2.0),)

    with mock.patch.object(pipe.vae, "decode", decoded):
        first, second = linear_decoder(pipe.vae), linear_decoder(pipe.vae)
    assert first is second
    assert len(calls) == 1
    torch.testing.assert_close(first[:, :-1], colours, rtol=0.05, atol=0.01)
    torch.testing.assert_close(first[:, -1], torch.full((3,), 0.5), rtol=0.05, atol=0.01)


def test_an_autoencoder_that_overflows_in_half_precision_draws_in_float32() -> None:
    """As SDXL's, whose config says so; it is left in its own precision."""
    pipe = stable_diffusion()
    pipe.vae.register_to_config(force_upcast=True)
    with torch.no_grad():
        pipe.vae.post_quant_conv.weight.mul_(1e5)
    latents = CLEAN[:1]
    want, fitted = decode(pipe, latents), linear_decoder(copy.deepcopy(pipe.vae))
    pipe.vae.half()
    torch.testing.assert_close(decode(pipe, latents), want, rtol=0, atol=0.05)
    torch.testing.assert_close(linear_decoder(pipe.vae), fitted, rtol=0.05, atol=0.05)
    assert pipe.vae.dtype == torch.float16


def test_what_cannot_be_drawn_is_refused() -> None:
    for options, words in (({"decoder": "taesd"}, "decoder = 'taesd'"), ({"every": 0}, "every = 0")):
        with pytest.raises(ValueError, match=words):
            fs.preview_callback(**options)
    pipe = quiet(stable_diffusion())
    with pytest.raises(ValueError, match="DDIMScheduler keeps no data prediction"):
        pipe("a small red circle", num_inference_steps=2, callback_on_step_end=fs.preview_callback())


def test_in_a_notebook_the_pictures_replace_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of IPython's two functions: a display that is updated in place."""
    shown: list[tuple[str, tuple[int, int]]] = []
    handle = types.SimpleNamespace(update=lambda image: shown.append(("update", image.size)))

    def display(image: Image.Image, display_id: bool) -> Any:
        shown.append(("new", image.size))
        return handle

    shell, output = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    shell.get_ipython = lambda: object()  # type: ignore[attr-defined]
    output.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", shell)
    monkeypatch.setitem(sys.modules, "IPython.display", output)
    preview = fs.preview_callback(decoder="vae")
    pipe = stable_diffusion()
    pipe.scheduler = fs.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe(["a small red circle"] * 2, num_inference_steps=3, callback_on_step_end=preview)
    assert [kind for kind, _ in shown] == ["new", "update", "update"]
    assert shown[0][1] == (512, 256)
