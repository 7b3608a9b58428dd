"""Configs of every family of models against diffusers' own classes: EDM, CogVideoX, flow, and what defaults hide."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from unittest import mock

import diffusers
import numpy as np
import pipelines
import pytest
import torch
from transformers import T5Config, T5EncoderModel

import fastsample as fs
from fastsample.schedules import EDMSchedule, NoiseSchedule

EDM = {"sigma_min": 0.02, "sigma_max": 80.0, "sigma_data": 0.5}


@functools.cache
def peer(name: str) -> type:
    """A scheduler class of diffusers, Stable Audio's also where torchsde, which draws its noise, is missing."""
    if name != "CosineDPMSolverMultistepScheduler":
        return getattr(diffusers, name)
    stub = {} if importlib.util.find_spec("torchsde") else {"torchsde": types.ModuleType("torchsde")}
    with mock.patch.dict(sys.modules, stub):
        return getattr(importlib.import_module("diffusers.schedulers.scheduling_cosine_dpmsolver_multistep"), name)


def trajectory(scheduler, steps: int, noise=None, scale=None, **grid):  # type: ignore[no-untyped-def]
    """As pipelines do it: the first noise scaled, the input scaled, a smooth made-up network."""
    scheduler.set_timesteps(steps, **grid)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * (scale or scheduler.init_noise_sigma)
    extra = {"variance_noise": noise} if noise is not None and isinstance(scheduler, fs.DPMSolverScheduler) else {}
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        output = 0.9 * torch.tanh(seen) + 0.1 * torch.sin(seen + t.float())
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x


def assert_same_run(ours, theirs, steps: int, noise=None, **grid) -> None:  # type: ignore[no-untyped-def]
    want = trajectory(theirs, steps, noise, **grid)
    got = trajectory(ours, steps, noise, scale=float(theirs.init_noise_sigma), **grid)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 9, 20])
def test_edm_parity_with_diffusers(prediction_type: str, sigma_schedule: str, steps: int) -> None:
    config = {**EDM, "prediction_type": prediction_type, "sigma_schedule": sigma_schedule, "rho": 5.0}
    euler = diffusers.EDMEulerScheduler(**config)
    ours = fs.DDIMScheduler.from_config(euler.config)
    assert ours.init_noise_sigma == euler.init_noise_sigma
    assert_same_run(ours, euler, steps)
    for options in ({}, {"solver_type": "heun"}, {"solver_order": 3}, {"solver_order": 1}):
        theirs = diffusers.EDMDPMSolverMultistepScheduler(**config, **options)
        assert_same_run(fs.DPMSolverScheduler.from_config(theirs.config), theirs, steps)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_cosine_edm_parity_with_diffusers(solver_type: str) -> None:
    """Stable Audio's stochastic scheduler, every default of its own, given the same noise."""
    theirs = peer("CosineDPMSolverMultistepScheduler")(solver_type=solver_type)
    ours = fs.DPMSolverScheduler.from_config(theirs.config, algorithm_type="sde-dpmsolver++")
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    set_timesteps = theirs.set_timesteps

    def with_noise(steps: int) -> None:
        set_timesteps(steps)
        theirs.noise_sampler = lambda *_: noise

    theirs.set_timesteps = with_noise
    for steps in (6, 20):
        assert_same_run(ours, theirs, steps, noise)


def test_edm_add_noise_and_prediction_are_diffusers() -> None:
    theirs = diffusers.EDMEulerScheduler(**EDM)
    ours = fs.GHVBScheduler.from_config(theirs.config)
    data, noise, output = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(7)
    t = theirs.timesteps[[2, 4]]
    x = theirs.add_noise(data, noise, t)
    torch.testing.assert_close(ours.add_noise(data, noise, t), x, rtol=1e-4, atol=1e-4)
    one, two = (s.step(output, theirs.timesteps[0], x).pred_original_sample for s in (ours, theirs))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_fresh_and_loaded_edm_configs_mean_the_same(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    fresh = peer(name)()
    fresh.save_pretrained(tmp_path)
    for config in (fresh.config, type(fresh).from_pretrained(tmp_path).config):
        ours = fs.UniPCScheduler.from_config(config)
        assert isinstance(ours.schedule, EDMSchedule)
        assert (ours.config.sigma_max, ours.schedule.time_of) == (80.0, "log")


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "CosineDPMSolverMultistepScheduler"])
def test_edm_round_trips_through_our_classes(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    theirs = peer(name)()
    want = trajectory(fs.DDIMScheduler.from_config(theirs.config), 5)
    ours = fs.DPMSolverScheduler.from_config(fs.GHVBScheduler.from_config(theirs.config).config)
    ours.save_pretrained(tmp_path)
    again = fs.DDIMScheduler.from_config(fs.DPMSolverScheduler.from_pretrained(tmp_path).config)
    assert torch.equal(trajectory(again, 5), want)
    back = type(theirs).from_config(again.config)
    assert {key: back.config[key] for key in ("sigma_data", "sigma_schedule", "prediction_type")} == {
        key: theirs.config[key] for key in ("sigma_data", "sigma_schedule", "prediction_type")
    }


@pytest.mark.parametrize("solver", [n for n, s in fs.available_solvers().items() if s.flow])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "CosineDPMSolverMultistepScheduler"])
def test_every_solver_lands_on_edm(solver: str, name: str) -> None:
    """An exact network of one clean sample, on the config's own grid and on named ones."""
    clean = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    config = peer(name)().config
    for grid in (None, "karras", "linspace", "trailing", "log-snr", "beta"):
        scheduler = fs.create_scheduler(solver, config, grid=grid)
        scheduler.set_timesteps(12)
        assert scheduler.timesteps.dtype == torch.float32
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)) * scheduler.init_noise_sigma
        exact = peer(name)()
        for i, t in enumerate(scheduler.timesteps):
            sigma = scheduler.sigmas[i]
            c_skip, c_out = (float(exact.precondition_outputs(a, b, sigma)) for a, b in ((1.0, 0.0), (0.0, 1.0)))
            x = scheduler.step((clean - c_skip * x) / c_out, t, x).prev_sample
        torch.testing.assert_close(x, clean, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("scheduler", [fs.DDIMScheduler, fs.DPMSolverScheduler, fs.UniPCScheduler])
def test_cosmos_steps_twice_with_a_repeated_sample(scheduler: type) -> None:
    """Its guidance: a step on the repeated sample for the data prediction, the index taken back, the real step."""
    config = diffusers.EDMEulerScheduler(**EDM).config
    plain, cosmos = scheduler.from_config(config), scheduler.from_config(config)
    x = y = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * EDM["sigma_max"]
    for own in (plain, cosmos):
        own.set_timesteps(5)
    for t in plain.timesteps:
        output = 0.9 * torch.tanh(plain.scale_model_input(x, t))
        x = plain.step(output, t, x).prev_sample
        output = 0.9 * torch.tanh(cosmos.scale_model_input(y, t))
        data = cosmos.step(torch.cat([output] * 2), t, torch.cat([y] * 2), return_dict=False)[1]
        cosmos._step_index -= 1
        y = cosmos.step(data[:2], t, y, return_dict=False, pred_original_sample=data[:2])[0]
    torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)
    theirs = diffusers.EDMEulerScheduler(**EDM)
    torch.testing.assert_close(
        plain._get_conditioning_c_in(torch.tensor(3.0)), theirs._get_conditioning_c_in(torch.tensor(3.0))
    )


def test_edm_explicit_sigmas_timesteps_and_final() -> None:
    scheduler = fs.DDIMScheduler.from_config(diffusers.EDMEulerScheduler(**EDM).config)
    scheduler.set_timesteps(sigmas=[50.0, 5.0, 0.3])
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([50.0, 5.0, 0.3, 0.0]))
    times = scheduler.timesteps
    scheduler.set_timesteps(timesteps=times.tolist())
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([50.0, 5.0, 0.3, 0.0]))
    scheduler = fs.DDIMScheduler.from_config(scheduler.config, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(6)
    assert float(scheduler.sigmas[-1]) == pytest.approx(EDM["sigma_min"])
    with pytest.raises(ValueError, match="prediction_type = 'sample'"):
        fs.DDIMScheduler.from_config(diffusers.EDMEulerScheduler(**EDM).config, prediction_type="sample")


def test_edm_schedule_is_its_own_inverse() -> None:
    for time in ("log", "atan"):
        schedule = NoiseSchedule.from_config({**EDM, "edm_time": time})
        node = schedule.node(schedule.clean_time)
        assert (node.alpha, node.sigma) == (0.5, 0.0)


COGVIDEOX = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}


@pytest.mark.parametrize("options", [{}, {"snr_shift_scale": 1.0}, {"rescale_betas_zero_snr": False}], ids=str)
def test_cogvideox_parity_with_diffusers(options: dict) -> None:
    """The released configs, and `snr_shift_scale` where it is an untouched default of a fresh scheduler."""
    theirs = diffusers.CogVideoXDDIMScheduler(**{**COGVIDEOX, **options}, clip_sample=False)
    ours = fs.DDIMScheduler.from_config(theirs.config)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.float(), rtol=2e-4, atol=1e-6)
    for steps in (5, 20):
        torch.testing.assert_close(trajectory(ours, steps), trajectory(theirs, steps), rtol=1e-4, atol=1e-4)


def test_cogvideox_sde_parity_with_diffusers() -> None:
    """CogVideoX's own DPM scheduler is DPM-Solver++ SDE 2M, given the same noise."""
    theirs = diffusers.CogVideoXDPMScheduler(**COGVIDEOX, clip_sample=False)
    ours = fs.DPMSolverScheduler.from_config(theirs.config, algorithm_type="sde-dpmsolver++")
    x, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    y, old = x, None
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(10)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    times = theirs.timesteps.tolist()
    with mock.patch("diffusers.schedulers.scheduling_dpm_cogvideox.randn_tensor", return_value=noise):
        for i, t in enumerate(times):
            x = ours.step(0.9 * torch.tanh(x), t, x, variance_noise=noise).prev_sample
            y, old = theirs.step(0.9 * torch.tanh(y), old, t, times[i - 1] if i else None, y)
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4)


PIPELINE_CLASSES = [
    "CogVideoXDDIMScheduler",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


@pytest.mark.parametrize("name", PIPELINE_CLASSES)
def test_a_fresh_config_describes_the_same_model(name: str) -> None:
    """Whatever a class's defaults are, they are those of the model and stay with it."""
    theirs = peer(name)()
    for ours in (fs.GHVBScheduler, fs.DPMSolverScheduler):
        got = ours.from_config(fs.DDIMScheduler.from_config(theirs.config).config).alphas_cumprod
        torch.testing.assert_close(got, theirs.alphas_cumprod.float(), rtol=2e-4, atol=1e-6)


SVD = {"use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
INVERTED = [{}, {"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}]


@pytest.mark.parametrize("options", [SVD, {}], ids=str)
def test_stable_video_parity_with_diffusers(options: dict) -> None:
    """Euler's "continuous" time, that of Stable Video Diffusion, is EDM with sigma_data = 1."""
    theirs = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_type="continuous",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        **options,
    )
    ours = fs.DDIMScheduler.from_config(theirs.config)
    for steps in (5, 20):
        assert_same_run(ours, theirs, steps)
        assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=3e-3)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=[40.0, 5.0, 0.5, 0.0])
    assert ours.init_noise_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=3e-3)


@pytest.mark.parametrize("config", INVERTED, ids=str)
@pytest.mark.parametrize("explicit", [False, True])
def test_inverted_flow_parity_with_diffusers(config: dict, explicit: bool) -> None:
    """Mochi: the model's time runs the other way, and its output is data - noise."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, **config)
    ours = fs.DDIMScheduler.from_config(theirs.config)
    grid = {"mu": 0.9} if config.get("use_dynamic_shifting") else {}
    grid |= {"sigmas": [1.0, 0.97, 0.8, 0.5, 0.2]} if explicit else {}
    results = []
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(None if explicit else 5, **grid)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(0.9 * torch.tanh(x) + 0.1 * torch.sin(t / 100), t, x).prev_sample
        results.append(x)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*results, rtol=5e-5, atol=5e-5)


@pytest.mark.parametrize("solver", [n for n, s in fs.available_solvers().items() if s.flow])
def test_every_solver_lands_on_inverted_flow(solver: str) -> None:
    clean, x = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = x
    scheduler = fs.create_scheduler(solver, diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config)
    scheduler.set_timesteps(8)
    t = scheduler.timesteps[3:4]
    part = float(t) / 1000
    torch.testing.assert_close(scheduler.add_noise(clean, noise, t), part * clean + (1 - part) * noise)
    for t in scheduler.timesteps:
        x = scheduler.step((clean - x) / (1 - t / 1000), t, x).prev_sample
    torch.testing.assert_close(x, clean, rtol=2e-2, atol=2e-2)


def test_exp_betas_are_diffusers() -> None:
    """Shap-E's, whose model predicts the sample."""
    theirs = diffusers.HeunDiscreteScheduler(
        beta_schedule="exp", num_train_timesteps=1024, prediction_type="sample", use_karras_sigmas=True
    )
    ours = fs.DPMSolverScheduler.from_config(theirs.config)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)
    theirs.set_timesteps(10)
    ours.set_timesteps(10)
    torch.testing.assert_close(ours.sigmas[:-1], theirs.sigmas.unique().flip(0)[:-1], rtol=1e-3, atol=1e-4)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}


@pytest.mark.parametrize("mu", [None, 0.7])
@pytest.mark.parametrize("steps", [4, 9, 20])
@pytest.mark.parametrize("options", [{}, {"flow_shift": 3.0}, {"flow_shift": 12.0, "solver_order": 3}], ids=str)
def test_flow_dpm_parity_with_diffusers(options: dict, steps: int, mu: float | None) -> None:
    """As Sana configures it: grid, whole timesteps and trajectory."""
    theirs = diffusers.DPMSolverMultistepScheduler(**FLOW, **options, use_dynamic_shifting=mu is not None)
    ours = fs.DPMSolverScheduler.from_config(theirs.config)
    assert_same_run(ours, theirs, steps, **({} if mu is None else {"mu": mu}))
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.timesteps.dtype == torch.int64


WAN = [
    {},
    {"flow_shift": 5.0},
    {"flow_shift": 3.0, "shift_terminal": 0.1},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift_terminal": 0.02},
    {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 200.0},
    {"use_karras_sigmas": True},
]


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("options", WAN, ids=str)
def test_flow_unipc_parity_with_diffusers(options: dict, explicit: bool) -> None:
    """As Wan and Cosmos 2.5 configure it: grid, whole timesteps and trajectory."""
    theirs = diffusers.UniPCMultistepScheduler(**FLOW, **options)
    ours = fs.UniPCScheduler.from_config(theirs.config)
    grid = {"mu": 0.7} if options.get("use_dynamic_shifting") else {}
    if explicit and "use_karras_sigmas" in options:
        pytest.skip("diffusers takes the given sigmas for a range there")
    for steps in (4, 9, 20):
        sigmas = {"sigmas": np.linspace(1, 1 / steps, steps)} if explicit else {}
        assert_same_run(ours, theirs, None if explicit else steps, **grid, **sigmas)  # type: ignore[arg-type]
        assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("spacing", ["linspace", "leading"])
@pytest.mark.parametrize("steps", [6, 20])
def test_lambda_min_clipped_parity_with_diffusers(spacing: str, steps: int) -> None:
    config = {**COSINE, "lambda_min_clipped": -5.1, "timestep_spacing": spacing}
    theirs = diffusers.DPMSolverMultistepScheduler(**config)
    assert_same_run(fs.DPMSolverScheduler.from_config(theirs.config), theirs, steps)
    ours = fs.DPMSolverScheduler(**config)
    ours.set_timesteps(steps)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    with pytest.raises(ValueError, match="lambda_min_clipped = 50"):
        fs.DPMSolverScheduler(lambda_min_clipped=50.0).set_timesteps(4)


def test_a_flow_shift_set_by_hand_is_not_applied_twice() -> None:
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    one, two = (fs.UniPCScheduler.from_config(config, **extra) for extra in ({}, {**FLOW, "flow_shift": 3.0}))
    one.set_timesteps(6)
    two.set_timesteps(6)
    torch.testing.assert_close(one.sigmas, two.sigmas)


class NoSafetyChecker(torch.nn.Module):
    """Cosmos' pipelines do not run without one."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, *_: object) -> bool:
        return True


def test_cosmos_pipeline_gives_diffusers_latents() -> None:
    """Guided, so with its step taken back; Euler is Euler, and a multistep solver keeps one history."""
    torch.manual_seed(0)
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        text_embed_dim=32,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
        concat_padding_mask=False,
        extra_pos_embed_type=None,
    )
    pipe = diffusers.CosmosTextToWorldPipeline(
        text_encoder=T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=8, num_layers=1, num_heads=2, vocab_size=6)),
        tokenizer=pipelines.tokenizer(),
        transformer=transformer,
        vae=diffusers.AutoencoderKLCosmos(
            latent_channels=4, encoder_block_out_channels=(8, 8, 8), decode_block_out_channels=(8, 8, 8), num_layers=1
        ),
        scheduler=diffusers.EDMEulerScheduler(sigma_data=0.5, final_sigmas_type="sigma_min"),
        safety_checker=NoSafetyChecker(),
    )
    pipe.set_progress_bar_config(disable=True)
    inputs = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 5, "guidance_scale": 3.0}
    inputs |= {"prompt_embeds": torch.randn(1, 8, 32), "negative_prompt_embeds": torch.randn(1, 8, 32)}
    config, results = pipe.scheduler.config, []
    for scheduler in (
        pipe.scheduler,
        fs.DDIMScheduler.from_config(config),
        fs.DPMSolverScheduler.from_config(config),
    ):
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        results.append(pipe(**inputs, generator=generator, output_type="latent").frames)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(results[2]).all()
