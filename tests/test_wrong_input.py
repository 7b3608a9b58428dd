"""Wrong input is refused in one line that names the argument and its value, before any model evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from refusal import check_refused

import fastsample as fs

SD = pipelines.SD_CONFIG
FLOW = dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
VP = fs.NoiseSchedule.linear_vp()
X = torch.zeros(2, 4, 8, 8)
TIMES = [0.9, 0.5, 0.1]


def ready(**config: Any) -> fs.DPMSolverScheduler:
    scheduler = fs.DPMSolverScheduler(**SD_ONLY, **config)
    scheduler.set_timesteps(4)
    return scheduler


SD_ONLY = {key: value for key, value in SD.items() if key != "clip_sample"}


def build(name: str, times: Any = TIMES, **options: Any) -> Callable[[], object]:
    return lambda: fs.build_table(name, VP, times, **options)


def create(name: str, config: Any = SD, **options: Any) -> Callable[[], object]:
    return lambda: fs.create_scheduler(name, config, **options)


def lay_out(config: dict[str, Any] | None = None, **grid: Any) -> Callable[[], object]:
    return lambda: fs.DPMSolverScheduler.from_config({**SD, **(config or {})}).set_timesteps(**grid)


CASES: list[tuple[Callable[[], object], str]] = [
    # solvers and their options
    (build("dpm2m"), "solver = 'dpm2m'"),
    (build("dpmpp_2m"), "did you mean dpmpp-2m"),
    (build("ghvb", gamma=1), "option gamma = 1"),
    (build("ddim", order=2), "option order = 2"),
    (build("ghvb", order=6), "order = 6"),
    (build("ghvb", order=True), "order = True"),
    (build("unipc", order=4), "order = 4"),
    (build("deis", order=0), "order = 0"),
    (build("ghvb", beta=0), "beta = 0"),
    (build("hb", beta=1.5), "beta = 1.5"),
    (build("hb", beta="0.5"), "beta = '0.5'"),
    (build("ghvb", weights="exact"), "weights = 'exact'"),
    (build("dpmpp-2m", solver_type="rk"), "solver_type = 'rk'"),
    (build("unipc", solver_type="bh3"), "solver_type = 'bh3'"),
    (build("unipc", corrector="yes"), "corrector = 'yes'"),
    (build("dpmpp-3m", variant="best"), "variant = 'best'"),
    # options that would have no effect: only the released formula of order 3 has another
    *[
        (
            build(name, variant="exact"),
            f"option variant = 'exact' is unknown to solver {name!r}: it takes {taken}",
        )
        for name, taken in {
            "dpm-2m": "solver_type",
            "dpmpp-2m": "solver_type",
            "dpm-1-sde": "solver_type, eta",
            "dpmpp-1-sde": "eta",
            "dpm-2m-sde": "solver_type",
            "dpmpp-2m-sde": "solver_type",
        }.items()
    ],
    (build("dpmpp-2m-sde", eta=2), "eta = 2"),
    (build("ddim", eta=-0.1), "eta = -0.1"),
    (build("dpmpp-2m", lower_final=-1), "lower_final = -1"),
    (build("dpmpp-2m", lower_final="yes"), "lower_final = 'yes'"),
    (build("dpmpp-2m", dualfast=1.0), "dualfast = 1.0"),
    (build("heun", dualfast=0.3), "dualfast = 0.3"),
    (build("dpm-3s", blocks=[3]), "blocks = [3]"),
    (build("dpmpp-2m", prediction_type="x0"), "prediction_type = 'x0'"),
    (create("accelerated-sde", FLOW), "needs a variance-preserving model"),
    # grids
    (build("ddim", times=[0.5, 0.9]), "the noise must fall"),
    (build("ddim", times=[0.5, 0.5]), "the noise must fall"),
    (build("ddim", times=[0.5]), "times has shape (1,)"),
    (build("ddim", times=[0.5, float("nan")]), "every time must be finite"),
    (lambda: fs.time_grid("karas", VP, 5), "grid = 'karas'"),
    (lambda: fs.time_grid("karras", VP, 0), "steps = 0"),
    (lambda: fs.time_grid("karras", VP, 5, final="one"), "final = 'one'"),
    (create("ddim", grid="karas"), "'karas'"),
    (lay_out(num_inference_steps=0), "num_inference_steps = 0"),
    (lay_out(num_inference_steps=-3), "num_inference_steps = -3"),
    (lay_out(num_inference_steps=2.5), "num_inference_steps = 2.5"),
    (lay_out(), "num_inference_steps = None"),
    (lay_out(timesteps=[1, 500]), "the noise must fall"),
    (lay_out(timesteps=[500, 500, 10]), "the noise must fall"),
    (lay_out(timesteps=[]), "timesteps = []"),
    (lay_out(timesteps=[[999, 500]]), "timesteps has shape (1, 2)"),
    (lay_out(sigmas=[0.5, 1.0]), "the noise must fall"),
    (lay_out(num_inference_steps=3, sigmas=[1.0, 0.5]), "sigmas has 2 values"),
    (lay_out(sigmas=[1.0, float("nan")]), "sigmas ="),
    (lay_out({"final_sigmas_type": "one"}, num_inference_steps=4), "final_sigmas_type = 'one'"),
    (lay_out({"timestep_spacing": "even"}, num_inference_steps=4), "timestep_spacing = 'even'"),
    (lay_out({"use_karras_sigmas": True, "use_beta_sigmas": True}, num_inference_steps=4), "all set"),
    (
        lambda: fs.DDIMScheduler.from_config({**FLOW, "use_dynamic_shifting": True}).set_timesteps(4),
        "mu = None",
    ),
    # schedulers' configs
    (lambda: fs.GHVBScheduler(order=9), "order = 9"),
    (lambda: fs.GHVBScheduler(beta=0), "beta = 0"),
    (lambda: fs.HeavyBallScheduler(base="euler"), "base = 'euler'"),
    (lambda: fs.HeavyBallScheduler(nesterov=True), "nesterov = True"),
    (lambda: fs.DPMSolverScheduler(solver_order=4), "solver_order = 4"),
    (lambda: fs.DPMSolverScheduler(solver_order=3, algorithm_type="sde-dpmsolver"), "solver_order = 3"),
    (lambda: fs.DPMSolverScheduler(algorithm_type="dpm"), "algorithm_type = 'dpm'"),
    (lambda: fs.UniPCScheduler(solver_order=0), "solver_order = 0: use one of 1, 2, 3"),
    (lambda: fs.DEISScheduler(solver_order=7), "solver_order = 7: use one of 1, 2, 3, 4"),
    (lambda: fs.IPNDMScheduler(solver_order=5), "solver_order = 5: use one of 1, 2, 3, 4"),
    (lambda: fs.HeavyBallScheduler(base="adams", adams_order=0), "adams_order = 0"),
    (lambda: fs.DPMSolverScheduler(eta=2.0), "eta = 2.0"),
    (lambda: fs.DPMSolverScheduler(prediction_type="x"), "prediction_type = 'x'"),
    (lambda: fs.DPMSolverScheduler(beta_schedule="x"), "beta_schedule = 'x'"),
    (lambda: fs.DPMSolverScheduler(num_train_timesteps=1), "num_train_timesteps = 1"),
    (lambda: fs.DPMSolverScheduler(trained_betas=[0.5, 2.0]), "trained_betas[1] = 2"),
    (lambda: fs.AcceleratedScheduler.from_config(FLOW, stochastic=True), "needs a variance-preserving model"),
    *[  # keys of diffusers', read by every class: as options, and in the config
        (call, f"{key} = {value!r}")
        for key, value in {
            "beta_schedule": "lineer",
            "beta_start": -0.1,
            "beta_end": "0.012",
            "trained_betas": "linear",
            "prediction_type": "eps",
            "timestep_spacing": "leading ",
            "final_sigmas_type": "sigma_minimum",
            "steps_offset": 1000,
            "snr_shift_scale": "x",
            "lambda_min_clipped": math.nan,
            "lower_order_final": "no",
            "rescale_betas_zero_snr": 2,
        }.items()
        for call in (
            create("dpmpp-2m", {**SD, key: value}),
            lambda key=key, value=value: fs.DDIMScheduler(**{key: value}),
        )
    ],
    *[  # keys of one class
        (lambda cls=cls, key=key, value=value: cls.from_config(SD, **{key: value}), f"{key} = {value!r}")
        for cls, key, value in (
            (fs.DPMSolverScheduler, "solver_type", "midpont"),
            (fs.DPMSolverScheduler, "euler_at_final", "yes"),
            (fs.UniPCScheduler, "predict_x0", "yes"),
            (fs.UniPCScheduler, "disable_corrector", 0),
            (fs.UniPCScheduler, "disable_corrector", [0, -1]),
            (fs.DDIMScheduler, "clip_sample", "yes"),
            (fs.DDIMScheduler, "clip_sample_range", -1.0),
            (fs.AcceleratedScheduler, "stochastic", "yes"),
            (fs.LCMScheduler, "timestep_scaling", math.nan),
            (fs.TCDScheduler, "original_inference_steps", 0),
        )
    ],
    (lambda: fs.DPMSolverScheduler(beta_start=0.5), "beta_start = 0.5, beta_end = 0.02"),
    (lambda: fs.DPMSolverScheduler(beta_end=0.9), "alphas_cumprod falls to"),
    (lambda: fs.DPMSolverScheduler(trained_betas=[[0.1, 0.2]] * 2), "trained_betas = [[0.1, 0.2], [0.1, 0.2]]"),
    # steps
    (lambda: fs.DPMSolverScheduler().step(X, 1, X), "call set_timesteps before step"),
    (lambda: ready().step(X[:, :3], 999, X), "model_output has shape"),
    (
        lambda: ready(algorithm_type="sde-dpmsolver++").step(X, 999, X, generator=[torch.Generator()]),
        "generator has 1 entry for a batch of 2",
    ),
]


@pytest.mark.parametrize(("call", "words"), CASES, ids=[words for _, words in CASES])
def test_wrong_input_is_one_line(call: Callable[[], object], words: str) -> None:
    check_refused(call, words)


def test_there_are_enough() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize(
    "call",
    [
        {"num_inference_steps": 0},
        {"timesteps": [10, 500]},
        {"sigmas": [0.5, 1.0]},
        {"timesteps": [500, 500]},
    ],
)
def test_a_pipeline_stops_before_its_network_runs(call: dict[str, Any]) -> None:
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = fs.UniPCScheduler.from_config(pipe.scheduler.config)
    calls: list[int] = []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"num_inference_steps = 0|the noise must fall"):
        pipe("a small red circle", output_type="latent", **call)
    assert calls == []


def test_a_missing_generator_is_fine() -> None:
    scheduler = ready(algorithm_type="sde-dpmsolver++")
    assert torch.isfinite(scheduler.step(X, scheduler.timesteps[0], X).prev_sample).all()


def test_numpy_and_tensor_grids_are_fine() -> None:
    for kind in (np.array, torch.tensor, list):
        scheduler = ready()
        scheduler.set_timesteps(timesteps=kind([900, 500, 100]))
        assert scheduler.timesteps.tolist() == [900, 500, 100]
