"""Grids on flow-matching models: the shift is kept, pipelines' own sigmas give way, a user's do not."""

from __future__ import annotations

import itertools
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.bria.pipeline_bria import get_original_sigmas
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from refusal import check_refused
from zoo import ZOO

import fastsample as fs
from fastsample.schedulers.grids.defaults import is_pipeline_default
from fastsample.schedules import GRIDS, FlowSchedule
from fastsample.schedules.grids import LEVEL_GRIDS, TIME_GRIDS

SHIFTS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"shift": 12.0},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear", "shift": 3.0},
    {"shift_terminal": 0.1, "shift": 2.0},
    {"shift_terminal": 0.02, "use_dynamic_shifting": True},
    {"invert_sigmas": True, "shift": 2.0},
]
THEIR_GRIDS = ("karras", "exponential", "beta")
STEPS = (1, 2, 3, 6, 10, 28)


def theirs(**config: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


def call_of(config: dict[str, Any], mu: float = 0.8, **grid: Any) -> dict[str, Any]:
    return {**grid, **({"mu": mu} if config.get("use_dynamic_shifting") else {})}


def sigmas_of(scheduler: Any, **call: Any) -> np.ndarray:
    scheduler.set_timesteps(**call)
    return scheduler.sigmas.double().numpy()


def assert_same_grid(ours: Any, wanted: Any, **call: Any) -> None:
    np.testing.assert_allclose(sigmas_of(ours, **call), sigmas_of(wanted, **call), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(ours.timesteps, wanted.timesteps, rtol=1e-5, atol=2e-3)


def ramp(steps: int) -> np.ndarray:
    return np.linspace(1.0, 1 / steps, steps)


def own_sigmas(steps: int, seed: int = 0) -> np.ndarray:
    """What no pipeline passes by itself."""
    return np.sort(np.random.default_rng(seed).uniform(0.05, 0.98, steps))[::-1].copy()


@pytest.mark.parametrize("config", SHIFTS, ids=str)
@pytest.mark.parametrize("grid", [None, *THEIR_GRIDS])
def test_a_grid_by_name_is_diffusers_own_option(grid: str | None, config: dict[str, Any]) -> None:
    """By flag and by name, with the sigmas that pipelines pass and without; of any solver."""
    flag = {f"use_{grid}_sigmas": True} if grid else {}
    for steps in STEPS:
        if steps == 1 and "shift_terminal" in config:
            continue  # theirs is not a number
        for given in ({"num_inference_steps": steps}, {"sigmas": ramp(steps)}, {"sigmas": ramp(steps).tolist()}):
            call = call_of(config, **given)
            wanted = theirs(**config, **flag)
            assert_same_grid(fs.DDIMScheduler.from_config(wanted.config), wanted, **call)
            plain = theirs(**config).config
            assert_same_grid(fs.UniPCScheduler.from_config(plain, timestep_grid=grid), wanted, **call)
            assert_same_grid(fs.create_scheduler("ghvb", plain, grid=grid), wanted, **call)


@pytest.mark.parametrize("config", SHIFTS, ids=str)
@pytest.mark.parametrize("grid", ["karras", "quadratic", "log-snr", "simple"])
def test_the_users_own_sigmas_win(grid: str, config: dict[str, Any]) -> None:
    """Shifted as ever. "replace" lets a grid win over any, "use" over none; diffusers' flags convert any."""
    plain = theirs(**config).config
    for steps in (2, 3, 6, 20):
        call = call_of(config, sigmas=own_sigmas(steps))
        asked = fs.DPMSolverScheduler.from_config(plain, timestep_grid=grid)
        assert_same_grid(asked, theirs(**config), **call)
        default = call_of(config, sigmas=ramp(steps))
        used = fs.DPMSolverScheduler.from_config(plain, timestep_grid=grid, passed_sigmas="use")
        assert_same_grid(used, theirs(**config), **default)
        if grid in THEIR_GRIDS:
            replaced = fs.DPMSolverScheduler.from_config(plain, timestep_grid=grid, passed_sigmas="replace")
            flagged = theirs(**config, **{f"use_{grid}_sigmas": True})
            assert_same_grid(replaced, flagged, **call)
            assert_same_grid(fs.DPMSolverScheduler.from_config(flagged.config), flagged, **call)
            kept = fs.DPMSolverScheduler.from_config(flagged.config, passed_sigmas="use")
            assert_same_grid(kept, theirs(**config), **call)


@pytest.mark.parametrize("config", [{"shift": 3.0}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}], ids=str)
@pytest.mark.parametrize("grid", TIME_GRIDS)
def test_a_grid_laid_out_in_time_is_shifted(grid: str, config: dict[str, Any]) -> None:
    """As diffusers shifts sigmas that it is given; and the shift has been written out for one case."""
    for steps, mu in itertools.product((1, 2, 6, 20), (0.5, 1.15)):
        unshifted = GRIDS[grid](FlowSchedule(scale=1000.0), steps) / 1000
        ours = fs.GHVBScheduler.from_config(theirs(**config).config, timestep_grid=grid)
        got = sigmas_of(ours, **call_of(config, mu, sigmas=ramp(steps)))
        if not (steps == 1 and "shift_terminal" in config):
            wanted = sigmas_of(theirs(**config), **call_of(config, mu, sigmas=unshifted))
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=2e-6)
        if config.get("use_dynamic_shifting"):
            np.testing.assert_allclose(got[:-1], 1 / (1 + np.exp(-mu) * (1 / unshifted - 1)), rtol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_grid_is_used_and_keeps_the_shift(grid: str) -> None:
    """On the call of Flux and of 49 pipelines: another grid than the default's, noisier the larger mu is."""
    config = theirs(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0).config
    for steps in (6, 10, 28):
        noisiness = []
        for mu in (0.5, 1.15, 2.0):
            call = {"sigmas": ramp(steps), "mu": mu}
            got = sigmas_of(fs.HeavyBallScheduler.from_config(config, timestep_grid=grid), **call)
            assert len(got) == steps + 1
            assert got[-1] == 0
            assert np.all(np.diff(got) < 0)
            if grid not in ("leading", "ddim-uniform"):  # which never begin at noise
                assert got[0] == 1
            if grid not in ("linspace", "trailing", "simple"):  # the default itself, or where the steps divide 1000
                assert np.abs(got - sigmas_of(theirs(**config), **call)).max() > 1e-3
            noisiness.append(got.sum())
        assert np.all(np.diff(noisiness) > 0)


DEFAULTS = {
    "Flux, Qwen-Image": ramp,
    "HunyuanVideo": lambda n: np.linspace(1.0, 0.0, n + 1)[:-1],
    "Z-Image": lambda n: torch.linspace(1.0, 1 / n, n).tolist(),
    "Ernie": lambda n: torch.linspace(1.0, 0.0, n + 1)[:-1],
    "Helios": lambda n: np.linspace(0.999, 0.0, n + 1)[:-1],
    "Cosmos 3": lambda n: np.linspace(1 - 1 / 1000, 0.0, n + 1)[:-1],
    "CogView4": lambda n: np.linspace(1000, 1.0, n).astype(np.int64).astype(np.float32) / 1000,
    "GLM-Image": lambda n: np.linspace(1000, 1.0, n + 1)[:-1].astype(np.int64).astype(np.float32) / 1000,
    "Bria": lambda n: get_original_sigmas(1000, n),
    "Mochi": lambda n: linear_quadratic_schedule(n, 0.025),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_pipelines_pass_by_themselves_is_known(name: str) -> None:
    for steps in range(2, 61):
        assert is_pipeline_default(np.asarray(DEFAULTS[name](steps), dtype=np.float64), 1000), steps
        assert not is_pipeline_default(own_sigmas(steps, steps), 1000)
        assert not is_pipeline_default(3 * ramp(steps) / (1 + 2 * ramp(steps)), 1000)  # somebody's own shift


def flow_pipelines() -> list[str]:
    """Those whose own scheduler is FlowMatchEulerDiscrete, one or more of each way to pass sigmas."""
    names = ("flux", "flux_img2img", "flux_2", "qwen_image", "stable_diffusion_3", "sd3", "z_image", "cogview4")
    names += ("ltx", "ltx_condition", "hunyuan_video", "mochi", "aura_flow", "lumina_2", "helios", "chroma", "ltx_2")
    return [name for name in names if name in ZOO]


@pytest.mark.parametrize("grid", THEIR_GRIDS)
@pytest.mark.parametrize("name", flow_pipelines())
def test_on_real_pipelines_a_grid_by_name_is_diffusers_own_option(name: str, grid: str) -> None:
    pipe = ZOO[name].build()
    config = {key: value for key, value in pipe.scheduler.config.items() if key != "_use_default_values"}
    config = {**config, **{f"use_{other}_sigmas": False for other in THEIR_GRIDS}}
    plain = FlowMatchEulerDiscreteScheduler.from_config(config)
    flagged = FlowMatchEulerDiscreteScheduler.from_config(config, **{f"use_{grid}_sigmas": True})
    used = []
    for scheduler in (plain, flagged, fs.DPMSolverScheduler.from_config(config, timestep_grid=grid)):
        pipe.scheduler = scheduler
        ZOO[name].sample(pipe)
        used.append((scheduler.sigmas.double().numpy(), scheduler.timesteps.double().numpy()))
    assert np.abs(used[1][0] - used[0][0]).max() > 1e-3  # the option does something here
    np.testing.assert_allclose(used[2][0], used[1][0], rtol=1e-5, atol=1e-6)
    if name not in ("cogview4", "ltx_condition"):  # whose timesteps diffusers leaves where the sigmas were before
        np.testing.assert_allclose(used[2][1], used[1][1], rtol=1e-5, atol=2e-3)


@pytest.mark.parametrize("grid", ["karras", "quadratic", "simple"])
def test_a_model_that_is_told_unshifted_times_is_told_those_of_the_grid(grid: str) -> None:
    """CogView4 and GLM-Image pass timesteps and sigmas: sigma is the shifted timestep, on a grid by name too."""
    config = theirs(use_dynamic_shifting=True, time_shift_type="linear").config
    for steps in (3, 10, 50):
        times = np.linspace(1000, 1.0, steps).astype(np.int64).astype(np.float32)
        scheduler = fs.UniPCScheduler.from_config(config, timestep_grid=grid)
        got = sigmas_of(scheduler, timesteps=times, sigmas=times / 1000, mu=2.5)[:-1]
        told = scheduler.timesteps.double().numpy() / 1000
        np.testing.assert_allclose(2.5 / (2.5 + (1 / told - 1)), got, rtol=2e-5)


FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flow": (dict(theirs().config), {}),
    "flow 3": (dict(theirs(shift=3.0).config), {}),
    "flow 12": (dict(theirs(shift=12.0).config), {}),
    "flow dynamic": (dict(theirs(use_dynamic_shifting=True).config), {"mu": 1.15}),
    "flow UniPC": (dict(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0).config), {}),
    "zero SNR": (
        dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
        {},
    ),
}


def spread(family: str, grid: str, steps: int) -> float:
    """The standard deviation of first-order samples of exact Gaussian data of 0.5, from unit noise: a closed form."""
    config, call = FAMILIES[family]
    prediction = "v_prediction" if family == "zero SNR" else "flow_prediction"
    scheduler = fs.DDIMScheduler.from_config(config, timestep_grid=grid, prediction_type=prediction)
    scheduler.set_timesteps(steps, **call)
    nodes, std = scheduler._run.grid, 1.0
    for one, two in itertools.pairwise(nodes):
        std *= (two.alpha * one.alpha * 0.25 + two.sigma * one.sigma) / (one.alpha**2 * 0.25 + one.sigma**2)
    return std


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_grid_collapses_where_alpha_may_be_0(grid: str, family: str) -> None:
    """Of first order, so the error falls with the steps; and it is never far above that of even steps in time."""
    errors, even = ([abs(spread(family, name, n) - 0.5) for n in (10, 20, 40)] for name in (grid, "trailing"))
    assert errors[0] > errors[1] > errors[2]
    if grid != "linear-quadratic":  # half of its steps are at noise, by design
        assert all(error < 2 * other + 0.02 for error, other in zip(errors, even, strict=True))


@pytest.mark.parametrize("config", SHIFTS, ids=str)
def test_explicit_timesteps_say_what_sigma_is(config: dict[str, Any]) -> None:
    """A time that the model is told is 1000 sigma: no shift, and an exact network leads to its sample."""
    data, x = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -1.0]])
    for times in ([1000, 750, 500, 250], [1000.0], [900, 333.3], np.array([999.0, 2.0]), torch.tensor([700, 600])):
        scheduler = fs.DDIMScheduler.from_config(theirs(**config).config)
        scheduler.set_timesteps(timesteps=times, **call_of(config))
        wanted = torch.as_tensor(np.asarray(times, dtype=np.float32)) / 1000
        inverted = bool(config.get("invert_sigmas"))
        torch.testing.assert_close(scheduler.sigmas[:-1], 1 - wanted if inverted else wanted)
        torch.testing.assert_close(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
        y = x
        for t in scheduler.timesteps:
            sigma = 1 - t / 1000 if inverted else t / 1000
            velocity = (y - data) / sigma
            y = scheduler.step(-velocity if inverted else velocity, t, y).prev_sample
        torch.testing.assert_close(y, data)


@pytest.mark.parametrize("grid", [None, "karras", "quadratic"])
@pytest.mark.parametrize("config", SHIFTS, ids=str)
def test_a_runs_timesteps_give_the_run_again(config: dict[str, Any], grid: str | None) -> None:
    """Whatever laid them out: what a model was told is what it is told."""
    scheduler = fs.DDIMScheduler.from_config(theirs(**config).config, timestep_grid=grid)
    for steps in (2, 7, 20):
        sigmas = sigmas_of(scheduler, **call_of(config, num_inference_steps=steps))
        times = scheduler.timesteps
        np.testing.assert_allclose(sigmas_of(scheduler, **call_of(config, timesteps=times)), sigmas, atol=1e-6)
        torch.testing.assert_close(scheduler.timesteps, times)


@pytest.mark.parametrize("grid", [None, *GRIDS])
@pytest.mark.parametrize("config", SHIFTS, ids=str)
def test_one_step_is_one_from_noise_to_data(config: dict[str, Any], grid: str | None) -> None:
    if grid in ("leading", "ddim-uniform"):
        return  # which never begin at noise
    for given in ({"num_inference_steps": 1}, {"sigmas": [1.0]}):
        scheduler = fs.UniPCScheduler.from_config(theirs(**config).config, timestep_grid=grid)
        got = sigmas_of(scheduler, **call_of(config, **given))
        assert got.tolist() == ([0.0, 1.0] if config.get("invert_sigmas") else [1.0, 0.0])


def test_the_end_of_a_flow_grid() -> None:
    """UniPC's last sigma is its end; others end at the model's smallest sigma; a lone step to it is refused."""
    unipc = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="sigma_min")
    ours = fs.UniPCScheduler.from_config(unipc.config)
    for steps in (2, 5, 20):
        np.testing.assert_allclose(
            sigmas_of(ours, num_inference_steps=steps), sigmas_of(unipc, num_inference_steps=steps)[:-1], rtol=1e-5
        )
    check_refused(lambda: ours.set_timesteps(1), "use 'zero'")
    dpm = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, final_sigmas_type="sigma_min")
    for steps in (1, 5, 20):
        assert_same_grid(fs.DPMSolverScheduler.from_config(dpm.config), dpm, num_inference_steps=steps)
    ours = fs.DDIMScheduler.from_config(theirs(shift=3.0).config, final_sigmas_type="sigma_min")
    assert sigmas_of(ours, num_inference_steps=10)[-1] == pytest.approx(3e-3 / 1.002, rel=1e-5)


@pytest.mark.parametrize("config", SHIFTS, ids=str)
def test_before_set_timesteps_there_is_the_training_grid(config: dict[str, Any]) -> None:
    """Training loops index it: as diffusers' class, shifted by a static shift."""
    ours, wanted = fs.GHVBScheduler.from_config(theirs(**config).config), theirs(**config)
    torch.testing.assert_close(ours.timesteps, wanted.timesteps, rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(ours.sigmas, wanted.sigmas, rtol=1e-6, atol=1e-6)


def test_before_set_timesteps_on_other_models() -> None:
    sd = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for zero_snr in (False, True):
        wanted = diffusers.EulerDiscreteScheduler(**sd, rescale_betas_zero_snr=zero_snr)
        ours = fs.DDIMScheduler.from_config(wanted.config)
        torch.testing.assert_close(ours.timesteps.float(), wanted.timesteps)
        torch.testing.assert_close(ours.sigmas, wanted.sigmas, rtol=2e-4, atol=1e-6)
    edm = diffusers.EDMEulerScheduler()
    ours = fs.DDIMScheduler.from_config(edm.config)
    assert ours.sigmas[0] == pytest.approx(float(edm.sigmas[0]))
    assert len(ours.timesteps) == len(ours.sigmas) - 1 == 1000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"timesteps": [1400, 500]}, "timesteps[0] = 1400: the model was trained at 0 to 1000"),
        ({"timesteps": [900, -20]}, "timesteps[1] = -20"),
        ({"timesteps": [0]}, "above 0"),
        ({"sigmas": [1.2, 0.5]}, "sigmas = [1.2, 0.5]"),
        ({"sigmas": [1.0, 0.0, 0.5]}, "above 0"),
        ({"sigmas": [0.5, 1.0]}, "the noise must fall"),
        ({"sigmas": [1.0, 0.5], "timesteps": [1000]}, "timesteps has 1 value"),
        ({"num_inference_steps": 1500}, "timestep_grid"),
    ],
)
def test_wrong_grids_are_one_line(call: dict[str, Any], words: str) -> None:
    scheduler = fs.DDIMScheduler.from_config(theirs(shift=3.0).config, timestep_grid="ddim-uniform")
    check_refused(lambda: scheduler.set_timesteps(**call), words)


def test_a_trailing_zero_is_the_end_itself() -> None:
    scheduler = fs.DDIMScheduler.from_config(theirs().config)
    for given in ([1.0, 0.5, 0.0], torch.tensor([1.0, 0.5, 0.0], dtype=torch.bfloat16, requires_grad=True)):
        assert sigmas_of(scheduler, sigmas=given).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("grid", LEVEL_GRIDS)
def test_a_range_of_levels_is_honoured_on_flow_models(grid: str) -> None:
    """diffusers' class reads `sigma_min` and `sigma_max` of its config in its three options."""
    config = {**theirs(shift=3.0).config, "sigma_min": 0.05, "sigma_max": 0.9}
    got = sigmas_of(fs.DDIMScheduler.from_config(config, timestep_grid=grid), num_inference_steps=9)
    assert got[0] == pytest.approx(0.9, rel=1e-6)
    assert got[-2] == pytest.approx(0.05, rel=1e-5)
