"""Grids of the programs and of published levels, against their numbers and formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from peers import SD as SD_CONFIG
from refusal import check_refused
from scipy.stats import beta, norm

import fastsample as fs
from fastsample.schedules import NoiseSchedule, published, time_grid
from fastsample.schedules.grids import FIXED_GRIDS, GRIDS, evaluation_times, grid_names, grid_options

SD = NoiseSchedule.from_config(SD_CONFIG)
FLOW = NoiseSchedule.from_config({"shift": 3.0})
EDM = NoiseSchedule.from_config({"sigma_min": 0.002, "sigma_max": 700.0, "sigma_data": 1.0})
SCHEDULES = (SD, FLOW, EDM)


def levels(name: str, schedule: NoiseSchedule, steps: int, **options: float) -> np.ndarray:
    """sigma of flow models, sigma / alpha of others."""
    times = evaluation_times(name, schedule, steps, **options)
    return np.asarray(schedule.sigma(times) if schedule.kind == "flow" else np.exp(-schedule.lam(times)))


@pytest.mark.parametrize("name", grid_names())
def test_every_grid_has_its_steps_or_says_for_what_it_is(name: str) -> None:
    for schedule in SCHEDULES:
        if name in FIXED_GRIDS and schedule.kind not in FIXED_GRIDS[name].kinds:
            check_refused(lambda schedule=schedule: evaluation_times(name, schedule, 5), "is laid out for")
            continue
        for steps in (1, 2, 3, 5, 8, 10):
            times = evaluation_times(name, schedule, steps)
            assert len(times) == steps
            assert np.all(np.isfinite(times))
            assert np.all(np.diff(schedule.lam(times)) > 0)
            assert len(time_grid(name, schedule, steps)) == steps + 1


def test_bong_tangent_is_two_ramps() -> None:
    printed = [1, 0.9713, 0.9294, 0.8629, 0.7443, 0.5, 0.2131, 0.0696]
    np.testing.assert_allclose(levels("bong-tangent", FLOW, 8), printed, atol=5e-5)
    high, low = np.exp(-SD.lam([999.0, 0.0]))
    np.testing.assert_allclose(levels("bong-tangent", SD, 8), low + np.array(printed) * (high - low), atol=1e-3)


@pytest.mark.parametrize(("name", "a", "b"), [("beta-time", 0.6, 0.6), ("beta57", 0.5, 0.7)])
@pytest.mark.parametrize("steps", [4, 9, 20, 30])
def test_beta_grids_are_comfyuis_indices(name: str, a: float, b: float, steps: int) -> None:
    """rint(ppf(1 - i / n) (M - 1)) of the M training times."""
    indices = np.rint(beta.ppf(1 - np.arange(steps) / steps, a, b) * 999)
    np.testing.assert_array_equal(evaluation_times(name, SD, steps), indices)
    np.testing.assert_array_equal(evaluation_times(name, FLOW, steps), indices + 1)
    np.testing.assert_array_equal(evaluation_times("beta-time", SD, steps, a=a, b=b), indices)


def test_smoothstep_is_its_cubic() -> None:
    u = 1 - np.arange(12) / 12
    np.testing.assert_array_equal(evaluation_times("smoothstep", SD, 12), np.round(999 * u**2 * (3 - 2 * u)))


def test_polyexponential_bends_the_exponential() -> None:
    low, high = np.log(np.exp(-SD.lam([0.0, 999.0])))
    for rho in (1.0, 2.0, 0.5):
        want = np.exp(np.linspace(1, 0, 9) ** rho * (high - low) + low)
        np.testing.assert_allclose(levels("exponential", SD, 9, rho=rho), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "values"), [("oss-flux", "OSS_FLUX"), ("oss-wan", "OSS_WAN"), ("oss-chroma", "OSS_CHROMA")]
)
def test_optimal_steps_are_the_published_ones(name: str, values: str) -> None:
    """In their own number of steps; in twice as many, the geometric means between them too. No shift moves them."""
    known = np.array(getattr(published, values))
    steps = len(known) - 1
    np.testing.assert_allclose(levels(name, FLOW, steps), known[:-1], rtol=1e-6)
    np.testing.assert_allclose(levels(name, FLOW, 2 * steps)[1::2], np.sqrt(known[:-1] * known[1:]), rtol=1e-6)
    config = {"shift": 3.0, "use_dynamic_shifting": False, "num_train_timesteps": 1000}
    scheduler = fs.create_scheduler("euler", config, grid=name)
    scheduler.set_timesteps(steps)
    np.testing.assert_allclose(scheduler.sigmas[:-1].numpy(), known[:-1], rtol=1e-5)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())  # what pipelines pass by themselves
    np.testing.assert_allclose(scheduler.sigmas[:-1].numpy(), known[:-1], rtol=1e-5)


@pytest.mark.parametrize(("name", "values"), [("ays-sd15-32", "AYS32_SD15"), ("ays-sdxl-32", "AYS32_SDXL")])
def test_32_aligned_steps_end_below_the_training_range(name: str, values: str) -> None:
    known = np.array(getattr(published, values))
    np.testing.assert_allclose(levels(name, SD, 32), np.minimum(known, 14.6146), rtol=1e-4)
    scheduler = fs.create_scheduler("dpmpp-2m", SD_CONFIG, grid=name)
    scheduler.set_timesteps(32)
    assert int(scheduler.timesteps[-1]) == 0


def test_bare_ays_is_of_the_kind_of_model() -> None:
    np.testing.assert_array_equal(evaluation_times("ays", SD, 10), evaluation_times("ays-sd15", SD, 10))
    np.testing.assert_array_equal(evaluation_times("ays", EDM, 10), evaluation_times("ays-svd", EDM, 10))


def test_gits_are_the_published_ones() -> None:
    for name, known in (("gits", published.GITS_SD15), ("gits-sdxl", published.GITS_SDXL)):
        np.testing.assert_allclose(levels(name, SD, 10), known[:-1], rtol=6e-3)  # stretched to the model's range


def test_distilled_times() -> None:
    np.testing.assert_array_equal(evaluation_times("turbo", SD, 4), [999, 899, 799, 699])
    np.testing.assert_array_equal(evaluation_times("lcm", SD, 4), [(50 - 50 * i // 4) * 20 - 1 for i in range(4)])
    np.testing.assert_array_equal(evaluation_times("lcm", SD, 3, original_steps=25), [999, 679, 359])
    check_refused(lambda: evaluation_times("turbo", SD, 11), "was distilled at 10 of 1000 times")


def test_shifts_by_tokens() -> None:
    """Flux, Flux.2 and LTX-2, by their own constants; the logit-normal's quantiles by SciPy's."""
    u = 1 - np.arange(6) / 6

    def moved(mu: float) -> np.ndarray:
        return np.asarray(np.exp(mu) / (np.exp(mu) + 1 / u - 1))

    np.testing.assert_allclose(levels("flux", FLOW, 6, tokens=256), moved(0.5), rtol=1e-9)
    np.testing.assert_allclose(levels("flux", FLOW, 6), moved(1.15), rtol=1e-9)
    np.testing.assert_allclose(levels("flux2", FLOW, 6, tokens=5000), moved(1.6927e-4 * 5000 + 0.45666666), rtol=1e-9)
    ltx = moved(2.05)
    np.testing.assert_allclose(levels("ltx2", FLOW, 6), 1 - 0.9 * (1 - ltx) / (1 - ltx[-1]), rtol=1e-9)
    logits = 0.5 * math.log(4) - 1.75 * norm.ppf(np.arange(1, 6) / 6)
    np.testing.assert_allclose(levels("logit-normal", FLOW, 6)[1:], 1 / (1 + np.exp(-logits)), rtol=1e-9)
    assert grid_options("flux") == {"tokens": 4096}


def test_one_step_of_kl_optimal_is_finite() -> None:
    for schedule in SCHEDULES:
        assert levels("kl-optimal", schedule, 1) == pytest.approx(levels("karras", schedule, 1))


def test_grids_of_any_model_are_listed_apart() -> None:
    assert not set(GRIDS) & set(FIXED_GRIDS)
    assert grid_names() == [*GRIDS, *FIXED_GRIDS]
