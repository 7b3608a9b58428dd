"""What a config may say: everything in it has an effect or is refused when the scheduler is made, in one line."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peers import SD, peer
from refusal import check_refused

import fastsample as fs
from fastsample.schedulers.grid import GridRequest, make_nodes
from fastsample.schedules import GRIDS
from fastsample.schedules.grids import LEVEL_GRIDS, TIME_GRIDS, grid_options
from fastsample.testing import run_scheduler

FLOW = dict(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
EDM = dict(diffusers.EDMEulerScheduler().config)
CLASSES = [fs.DDIMScheduler, fs.DPMSolverScheduler, fs.UniPCScheduler, fs.GHVBScheduler, fs.HeavyBallScheduler]


def model(x: torch.Tensor, t: float | torch.Tensor) -> torch.Tensor:
    """A smooth made-up network."""
    return 0.9 * torch.tanh(x) + 0.1 * torch.sin(torch.as_tensor(t, dtype=torch.float64) / 100).to(x.dtype)


def run(scheduler: Any, steps: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return run_scheduler(scheduler, model, x, steps)


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (SD, {"timestep_grid": "karas"}, "timestep_grid = 'karas'"),
    (SD, {"timestep_spacing": "even"}, "= 'even'"),
    (SD, {"timestep_spacing": "even", "timestep_grid": "karras"}, "= 'even'"),
    (SD, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "are all set"),
    (FLOW, {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "are all set"),
    (SD, {"use_karras_sigmas": "yes"}, "use_karras_sigmas = 'yes'"),
    (SD, {"final_sigmas_type": "one"}, "final_sigmas_type = 'one'"),
    (FLOW, {"final_sigmas_type": "one"}, "final_sigmas_type = 'one'"),
    (FLOW, {"time_shift_type": "cubic"}, "time_shift_type = 'cubic'"),
    (EDM, {"sigma_schedule": "linear"}, "sigma_schedule = 'linear'"),
    (EDM, {"edm_time": "sin"}, "edm_time = 'sin'"),
    (SD, {"timestep_type": "whole"}, "timestep_type = 'whole'"),
    (FLOW, {"passed_sigmas": "maybe"}, "passed_sigmas = 'maybe'"),
    (SD, {"steps_offset": -1}, "steps_offset = -1"),
    (SD, {"steps_offset": 0.5}, "steps_offset = 0.5"),
    (SD, {"num_train_timesteps": 1.5}, "num_train_timesteps = 1.5"),
    (FLOW, {"num_train_timesteps": 0}, "num_train_timesteps = 0"),
    (FLOW, {"shift": -1.0}, "shift = -1.0"),
    (FLOW, {"flow_shift": 0.0}, "flow_shift = 0.0"),
    (FLOW, {"shift_terminal": 1.5}, "shift_terminal = 1.5"),
    (SD, {"shift_terminal": 0.1}, "shift_terminal = 0.1: only flow"),
    (SD, {"use_dynamic_shifting": True}, "use_dynamic_shifting = True: only flow"),
    (SD, {"invert_sigmas": True}, "invert_sigmas = True: only flow"),
    (SD, {"flow_shift": 3.0}, "flow_shift = 3.0: only flow"),
    (FLOW, {"timestep_spacing": "trailing"}, "option timestep_spacing = 'trailing': it has no effect on a flow"),
    (FLOW, {"rescale_betas_zero_snr": True}, "option rescale_betas_zero_snr = True"),
    (SD, {"dynamic_thresholding_ratio": 2.0}, "dynamic_thresholding_ratio = 2.0"),
    (SD, {"sample_max_value": 0}, "sample_max_value = 0"),
    (SD, {"rho": -7.0, "use_karras_sigmas": True}, "rho = -7.0"),
    (SD, {"rho": 5.0}, "rho = 5.0: it is of the karras grid"),
    (FLOW, {"rho": 5.0, "timestep_grid": "beta"}, "rho = 5.0: it is of the karras grid"),
    (SD, {"sigma_min": 0.1}, "sigma_min = 0.1: the linspace grid is laid out in time"),
    (FLOW, {"sigma_max": 0.9}, "sigma_max = 0.9: the linspace grid"),
    (SD, {"sigma_max": 5.0, "timestep_grid": "quadratic"}, "sigma_max = 5.0: the quadratic grid"),
    (SD, {"sigma_min": 5.0, "sigma_max": 1.0, "use_karras_sigmas": True}, "need sigma_min < sigma_max"),
    (SD, {"sigma_min": math.nan, "use_karras_sigmas": True}, "sigma_min = nan"),
    (SD, {"grid_options": {"a": 0.5}}, "grid_options: a = 0.5 is unknown"),
    (SD, {"grid_options": {"c": 0.5}, "timestep_grid": "beta"}, "the beta grid has a, b"),
    (SD, {"grid_options": {"a": 0.5}, "timestep_grid": "quadratic"}, "the quadratic grid has no options"),
    (SD, {"grid_options": {"a": -1}, "timestep_grid": "beta"}, "a = -1: give a positive number"),
    (SD, {"s_noise": 1.01}, "option s_noise = 1.01 is unknown"),
    (FLOW, {"s_churn": 0.2}, "option s_churn = 0.2 is unknown"),
    (SD, {"use_karas_sigmas": True}, "did you mean use_karras_sigmas?"),
]


@pytest.mark.parametrize(("config", "options", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_wrong_values_die_in_the_constructor(config: dict[str, Any], options: dict[str, Any], words: str) -> None:
    for kind in CLASSES:
        check_refused(lambda kind=kind: kind.from_config(config, **options), words)
        if not words.startswith(("option", "did you mean")):  # in the config itself, too
            check_refused(lambda kind=kind: kind.from_config({**config, **options}), words)


def test_unknown_options_of_a_class_are_refused_and_other_classes_keys_come_back() -> None:
    check_refused(lambda: fs.GHVBScheduler.from_config(SD, solver_order=3), "solver_order = 3 is unknown to GHVB")
    check_refused(lambda: fs.DDIMScheduler.from_config(FLOW, betta=0.5), "option betta = 0.5")
    kept = fs.GHVBScheduler.from_config({**SD, "solver_order": 3, "skip_prk_steps": True})
    assert (kept.config["solver_order"], kept.config["skip_prk_steps"]) == (3, True)


@pytest.mark.parametrize("name", ["DEISMultistepScheduler", "SASolverScheduler"])
def test_another_classes_types_mean_the_same_fresh_and_loaded(name: str) -> None:
    """A fresh config hands on no defaults, and a file has them all: the algorithm's and the solver's too."""
    fresh = peer(name).config
    loaded = {key: value for key, value in fresh.items() if not key.startswith("_")}
    for kind in CLASSES:
        assert kind.from_config(loaded).solver() == kind.from_config(fresh).solver()


@pytest.mark.parametrize("kind", CLASSES)
def test_a_models_shift_given_as_an_option_is_used(kind: type) -> None:
    """No class here has the key of its own; diffusers would drop it without a word."""
    ours = kind.from_config(FLOW, shift=7.0)
    wanted = FlowMatchEulerDiscreteScheduler(shift=7.0)
    for scheduler in (ours, wanted):
        scheduler.set_timesteps(9)
    torch.testing.assert_close(ours.sigmas, wanted.sigmas, rtol=1e-5, atol=1e-6)


FOREIGN = {
    "CMStochasticIterativeScheduler": "consistency",
    "LCMScheduler": "consistency",
    "TCDScheduler": "consistency",
    "FlowMatchLCMScheduler": "consistency",
    "SCMScheduler": "consistency",
    "DDPMWuerstchenScheduler": "keep its scheduler",
    "KarrasVeScheduler": "keep its scheduler",
    "ScoreSdeVeScheduler": "keep its scheduler",
}


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_another_kind_keep_their_scheduler(name: str, loaded: bool, tmp_path: Any) -> None:
    """Told by the keys of a fresh config, which has no class name, and of a loaded one."""
    theirs = getattr(diffusers, name)()
    if loaded:
        theirs.save_pretrained(tmp_path)
        theirs = type(theirs).from_pretrained(tmp_path)
    assert ("_class_name" in theirs.config) is loaded
    for kind in CLASSES:
        check_refused(lambda kind=kind: kind.from_config(theirs.config), FOREIGN[name])
    check_refused(lambda: fs.create_scheduler("dpmpp-2m", theirs.config), "keep its scheduler")
    check_refused(lambda: fs.scheduler_from_name("Euler a", theirs.config), "keep its scheduler")


def test_scaled_noise_of_a_config_is_refused() -> None:
    own = diffusers.LTXEulerAncestralRFScheduler
    assert fs.DDIMScheduler.from_config(own().config).config.prediction_type == "flow_prediction"
    check_refused(lambda: fs.DDIMScheduler.from_config(own(s_noise=1.1).config), "s_noise = 1.1")


FLOW_CLASSES = {
    "UniPCMultistepScheduler": fs.UniPCScheduler,
    "DPMSolverMultistepScheduler": fs.DPMSolverScheduler,
}


@pytest.mark.parametrize("prediction_type", ["flow_prediction", "epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", FLOW_CLASSES)
def test_a_stated_prediction_type_is_kept_on_flow_models(name: str, prediction_type: str) -> None:
    """As SkyReels-V2 states epsilon: what diffusers' class computes then. In float64, as theirs divides by 1e-6."""
    for options in ({}, {"flow_shift": 8.0}, {"solver_order": 1}, {"solver_order": 3, "flow_shift": 3.0}):
        theirs = getattr(diffusers, name)(use_flow_sigmas=True, prediction_type=prediction_type, **options)
        ours = FLOW_CLASSES[name].from_config(theirs.config)
        assert ours.config.prediction_type == prediction_type
        for steps in (4, 9, 20):
            got, want = run(ours, steps, torch.float64), run(theirs, steps, torch.float64)
            assert float((got - want).abs().max()) < 5e-5 * max(1.0, float(want.abs().max()))
    fresh = getattr(diffusers, name)(use_flow_sigmas=True)  # epsilon is an untouched default there
    for kind in CLASSES:
        assert kind.from_config(fresh.config).config.prediction_type == "epsilon"
        again = fs.DDIMScheduler.from_config(kind.from_config(theirs.config).config)
        assert again.config.prediction_type == prediction_type
        assert kind.from_config(FLOW).config.prediction_type == "flow_prediction"


@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_noise_predictions_on_flow_models_land_on_any_grid(grid: str | None) -> None:
    """The first step leaves a little signal, as diffusers' UniPC does: pure noise says nothing of the data."""
    config = diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=8.0).config
    clean, x = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for kind in CLASSES:
        scheduler = kind.from_config(config, timestep_grid=grid)
        scheduler.set_timesteps(10)
        y = x
        for t, sigma in zip(scheduler.timesteps, [node.sigma for node in scheduler._run.grid], strict=False):
            y = scheduler.step((y - (1 - sigma) * clean) / sigma, t, y).prev_sample
        torch.testing.assert_close(y, clean, rtol=1e-2, atol=1e-2)


ZERO_SNR_PEERS = {
    "UniPCMultistepScheduler": fs.UniPCScheduler,
    "DPMSolverMultistepScheduler": fs.DPMSolverScheduler,
}


@pytest.mark.parametrize("grid", [{}, {"use_karras_sigmas": True}], ids=str)
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", ZERO_SNR_PEERS)
def test_noise_predictions_from_zero_snr_are_diffusers(name: str, spacing: str, grid: dict[str, Any]) -> None:
    """It leaves alpha^2 = 2^-24 of signal at the last timestep, whatever the prediction type."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": spacing, **grid}
    for order, steps in ((1, 5), (2, 5), (2, 20), (3, 20)):
        theirs = peer(name, solver_order=order, **config)
        ours = ZERO_SNR_PEERS[name].from_config(theirs.config)
        got, want = run(ours, steps), run(theirs, steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        # theirs has alpha from float32 betas: relative error 2^-24 / 2^-12 at the noisiest steps
        assert float((got - want).abs().max()) < 3e-4 * float(want.abs().max())


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("grid", [None, *GRIDS])
def test_noise_predictions_from_zero_snr_are_finite_on_any_grid(grid: str | None, kind: type) -> None:
    scheduler = kind.from_config({**SD, "rescale_betas_zero_snr": True}, timestep_grid=grid)
    for steps in (1, 2, 9):
        assert torch.isfinite(run(scheduler, steps)).all()


RANGES = [{"sigma_min": 0.05, "sigma_max": 10.0}, {"sigma_min": 0.1}, {"sigma_max": 20.0}, {"sigma_max": 5.0}]
RANGE_PEERS = {"UniPCMultistepScheduler": fs.UniPCScheduler, "EulerDiscreteScheduler": fs.DDIMScheduler}


@pytest.mark.parametrize("grid", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", RANGE_PEERS)
def test_a_range_of_sigmas_is_diffusers(name: str, grid: str) -> None:
    """By flag and by name, on models with discrete betas."""
    for ends in RANGES:
        theirs = peer(name, **{f"use_{grid}_sigmas": True}, **ends)
        flagged = RANGE_PEERS[name].from_config(theirs.config)
        named = RANGE_PEERS[name].from_config({**SD, **ends}, timestep_grid=grid)
        for steps in (2, 5, 20):
            for scheduler in (flagged, named, theirs):
                scheduler.set_timesteps(steps)
            torch.testing.assert_close(flagged.sigmas, theirs.sigmas, rtol=1e-4, atol=1e-4)
            assert torch.equal(flagged.sigmas, named.sigmas)
            assert torch.all((flagged.timesteps - theirs.timesteps).abs() <= 1)


@pytest.mark.parametrize("grid", LEVEL_GRIDS)
def test_every_level_grid_honours_a_range(grid: str) -> None:
    for extra in ({}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}):
        scheduler = fs.DDIMScheduler.from_config({**SD, **extra}, timestep_grid=grid, sigma_min=0.1, sigma_max=8.0)
        scheduler.set_timesteps(12)
        assert float(scheduler.sigmas[0]) == pytest.approx(8.0, rel=1e-5)
        assert float(scheduler.sigmas[-2]) >= 0.1 * (1 - 1e-5)


def test_the_range_of_a_flag_goes_with_it() -> None:
    """A named grid takes the place of a flag of the model's config, and of the range that belongs to the flag."""
    config = {**SD, "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 8.0}
    scheduler = fs.DDIMScheduler.from_config(config, timestep_grid="quadratic")
    wanted = fs.DDIMScheduler(**SD, timestep_grid="quadratic")
    for one in (scheduler, wanted):
        one.set_timesteps(7)
    assert torch.equal(scheduler.sigmas, wanted.sigmas)


def karras(first: float, last: float, steps: int, rho: float) -> np.ndarray:
    return (first ** (1 / rho) + np.linspace(0, 1, steps) * (last ** (1 / rho) - first ** (1 / rho))) ** rho


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0, 12.0])
def test_rho_is_honoured_on_every_family(rho: float) -> None:
    """Against EDM's formula between the ends of the grid: sigma / alpha, or sigma on flow models."""
    unipc = dict(diffusers.UniPCMultistepScheduler(use_flow_sigmas=True).config)
    for config in (SD, FLOW, EDM, unipc):
        for asked in ({"timestep_grid": "karras"}, {"use_karras_sigmas": True}):
            if config is unipc and "use_karras_sigmas" in asked:
                continue  # laid out in sigma / alpha, then turned into sigma
            scheduler = fs.DDIMScheduler.from_config({**config, "rho": rho}, **asked)
            scheduler.set_timesteps(9)
            got = scheduler.sigmas[:-1].double().numpy()
            np.testing.assert_allclose(got, karras(got[0], got[-1], 9, rho), rtol=2e-5)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.8), (1.0, 1.0), (2.0, 1.0)])
def test_the_beta_grids_a_and_b_are_honoured_on_every_family(a: float, b: float) -> None:
    from scipy.stats import beta

    for config in (SD, FLOW, EDM):
        scheduler = fs.create_scheduler("dpmpp-2m", config, grid="beta", grid_options={"a": a, "b": b})
        scheduler.set_timesteps(9)
        got = scheduler.sigmas[:-1].double().numpy()
        quantiles = beta.ppf(np.linspace(1, 0, 9), a, b)
        np.testing.assert_allclose(got, got[-1] + quantiles * (got[0] - got[-1]), rtol=2e-5)


def test_numbers_of_numpy_are_numbers() -> None:
    config = {**FLOW, "shift": np.float32(3.0), "num_train_timesteps": np.int64(1000), "shift_terminal": 0.0}
    ours, wanted = fs.DDIMScheduler.from_config(config), FlowMatchEulerDiscreteScheduler(shift=3.0)
    for scheduler in (ours, wanted):
        scheduler.set_timesteps(5)
    torch.testing.assert_close(ours.sigmas, wanted.sigmas, rtol=1e-5, atol=1e-6)


def test_options_of_a_flagged_grid() -> None:
    options = {"a": 0.5, "b": 0.8}
    flagged = fs.DDIMScheduler.from_config({**SD, "use_beta_sigmas": True}, grid_options=options)
    named = fs.create_scheduler("ddim", SD, grid="beta", grid_options=options)
    for scheduler in (flagged, named):
        scheduler.set_timesteps(7)
    assert torch.equal(flagged.sigmas, named.sigmas)


def test_every_grid_option_is_found() -> None:
    assert grid_options("karras") == {"rho": 7.0}
    assert grid_options("linear-quadratic") == {"threshold": 0.025}
    beta = {"beta", "beta-time", "beta57"}
    others = {"karras", "exponential", "linear-quadratic", "shifted-quadratic"}
    assert {name for name in GRIDS if grid_options(name)} == others | beta
    config = dict(FlowMatchEulerDiscreteScheduler().config)
    scheduler = fs.create_scheduler("ddim", config, grid="linear-quadratic", grid_options={"threshold": 0.1})
    scheduler.set_timesteps(10)
    torch.testing.assert_close(scheduler.sigmas[:6], 1 - 0.02 * torch.arange(6), rtol=1e-5, atol=1e-6)


SPACED = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler"]


def times_of(config: dict[str, Any], steps: int, leading_from_zero: bool = False) -> list[float]:
    """The times that the network is told, without the table of a solver."""
    request = GridRequest(steps, leading_from_zero=leading_from_zero)
    return [node.time for node in make_nodes(fs.NoiseSchedule.from_config(config), config, request)[:-1]]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("name", SPACED)
def test_no_spacing_collapses(name: str, spacing: str, offset: int) -> None:
    """As diffusers' class where its timesteps are those of a run; else as many steps as asked for, or one line."""
    config = {"timestep_spacing": spacing, "steps_offset": offset}
    for steps in (1, 2, 3, 7, 50, 333, 499, 500, 501, 600, 998, 999, 1000, 1001, 1500):
        try:
            theirs = peer(name, **config)
            theirs.set_timesteps(steps)
            wanted = theirs.timesteps.tolist()
        except ValueError:
            wanted = []
        sound = len(set(wanted)) == steps and max(wanted) < 1000 and min(wanted) >= 0
        multistep = name != "DDIMScheduler"
        if steps > 1000 or (spacing == "leading" and multistep and steps > 999):
            refused = functools.partial(times_of, {**SD, **config}, steps, not multistep)
            check_refused(refused, f"num_inference_steps = {steps}")
            continue
        got = times_of({**SD, **config}, steps, not multistep)
        assert len(got) == steps
        assert 0 <= got[-1] <= got[0] <= 999
        assert np.all(np.diff(got) < 0)
        if sound and (multistep or spacing != "linspace"):  # on which theirs spends a step at time 0
            assert got == wanted


def test_a_collapsing_spacing_is_refused_by_the_schedulers() -> None:
    for kind, steps in ((fs.DPMSolverScheduler, 1000), (fs.DDIMScheduler, 1500), (fs.UniPCScheduler, 1001)):
        scheduler = kind.from_config({**SD, "timestep_spacing": "leading"})
        check_refused(
            lambda s=scheduler, n=steps: s.set_timesteps(n), f"num_inference_steps = {steps}: the leading grid"
        )


@pytest.mark.parametrize("grid", TIME_GRIDS)
def test_a_grid_of_more_steps_than_times_is_refused_or_whole(grid: str) -> None:
    for steps, config in itertools.product((500, 998, 999, 1000, 1001, 2500), (SD, FLOW)):
        asked = functools.partial(times_of, {**config, "timestep_grid": grid}, steps)
        try:
            got = len(asked())
        except ValueError:
            check_refused(asked, f"steps = {steps}")
            got = steps if steps > 998 else 0
        assert got == steps


@pytest.mark.parametrize(
    ("config", "call", "words"),
    [
        (SD, {"timesteps": [1400, 500]}, "timesteps[0] = 1400: the model was trained at 0 to 999"),
        (SD, {"timesteps": [500, -20]}, "timesteps[1] = -20"),
        (SD, {"timesteps": [999.5]}, "timesteps[0] = 999.5"),
        (SD, {"sigmas": [0.0]}, "above 0"),
        (SD, {"sigmas": [5.0, 0.0, 1.0]}, "above 0"),
        (EDM, {"timesteps": [9.0, 0.0]}, "timesteps[0] = 9"),
        (EDM, {"sigmas": [-1.0]}, "above 0"),
        (SD, {"timesteps": 500}, "timesteps has shape (): give a list"),
        (FLOW, {"sigmas": torch.ones(1, 4)}, "sigmas has shape (1, 4): give a list"),
    ],
)
def test_times_that_were_not_trained_are_one_line(config: dict[str, Any], call: dict[str, Any], words: str) -> None:
    for kind in CLASSES:
        check_refused(lambda kind=kind: kind.from_config(config).set_timesteps(**call), words)


def test_a_grid_gives_way_to_sigmas_and_timesteps_on_every_family_unless_they_are_to_be_replaced() -> None:
    for config, call in (
        (SD, {"timesteps": [900, 300, 100]}),
        (SD, {"sigmas": [9.0, 2.0, 0.3]}),
        (EDM, {"sigmas": [9.0, 2.0, 0.3]}),
    ):
        plain = fs.DDIMScheduler.from_config(config)
        asked = fs.DDIMScheduler.from_config(config, timestep_grid="karras")
        replaced = fs.DDIMScheduler.from_config(config, timestep_grid="karras", passed_sigmas="replace")
        plain.set_timesteps(**call), asked.set_timesteps(**call)
        assert torch.equal(plain.sigmas, asked.sigmas)
        replaced.set_timesteps(**call), asked.set_timesteps(3)
        assert torch.equal(replaced.sigmas, asked.sigmas)


def test_reading_a_config_does_not_change_it() -> None:
    for config in (SD, FLOW, EDM):
        before = copy.deepcopy(config)
        fs.DDIMScheduler.from_config(config, **({"shift": 2.0} if config is FLOW else {}))
        assert config == before
