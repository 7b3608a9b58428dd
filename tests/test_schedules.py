"""Noise schedules and grids against closed forms. Those of diffusers: test_schedule_peers.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusal import check_refused
from scipy.stats import beta

from fastsample.schedules import GRIDS, EDMSchedule, NoiseSchedule, time_grid
from fastsample.schedules.flow import shift_sigmas

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SCHEDULES = {
    "sd": NoiseSchedule.from_config(SD),
    "cosine": NoiseSchedule.from_config({"beta_schedule": "squaredcos_cap_v2"}),
    "ztsnr": NoiseSchedule.from_config({**SD, "rescale_betas_zero_snr": True}),
    "vp": NoiseSchedule.linear_vp(),
    "flow": NoiseSchedule.flow(shift=3.0),
    "flow-config": NoiseSchedule.from_config({"shift": 3.0, "use_dynamic_shifting": False}),
    "flow-inverted": NoiseSchedule.from_config({"shift": 1.0, "invert_sigmas": True}),
    "edm": EDMSchedule(0.002, 80.0, 0.5),
    "edm-quiet": EDMSchedule(0.002, 0.9, 0.5),  # its times are all negative
    "edm-atan": EDMSchedule(0.3, 500.0, 1.0, "atan"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_is_the_inverse_of_lam(name: str) -> None:
    schedule = SCHEDULES[name]
    first, last = schedule.first_time, schedule.noise_time
    times = np.linspace(first + 1e-3 * (last - first), last - 1e-3 * (last - first), 501)
    np.testing.assert_allclose(schedule.time(schedule.lam(times)), times, rtol=1e-9, atol=1e-9 * schedule.noise_time)


@pytest.mark.parametrize("name", SCHEDULES)
def test_marginals_and_their_limits(name: str) -> None:
    schedule = SCHEDULES[name]
    times = np.linspace(schedule.clean_time, schedule.noise_time, 200)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    total = {"vp": alpha**2 + sigma**2, "flow": alpha + sigma, "edm": alpha / schedule.data_scale}[schedule.kind]
    np.testing.assert_allclose(total, 1.0, atol=1e-12)
    assert np.all(np.diff(sigma) > 0)
    clean = schedule.node(schedule.clean_time)
    assert (clean.alpha, clean.sigma, clean.lam) == (schedule.data_scale, 0.0, np.inf)
    assert schedule.node_of(schedule.node(times[100]).time) == schedule.node(times[100])
    assert float(schedule.time(np.inf)) == schedule.clean_time


def test_zero_terminal_snr_is_exactly_zero() -> None:
    node = SCHEDULES["ztsnr"].node(999.0)
    assert (node.alpha, node.sigma, node.lam) == (0.0, 1.0, -np.inf)


def test_flow_shift_formulas() -> None:
    sigmas = np.linspace(0, 1, 11)
    np.testing.assert_allclose(NoiseSchedule.flow(shift=3.0).sigma(sigmas), 3 * sigmas / (1 + 2 * sigmas), atol=1e-15)
    np.testing.assert_allclose(shift_sigmas(shift_sigmas(sigmas, 3.0), 1 / 3.0), sigmas, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@given(
    grid=st.sampled_from(sorted(GRIDS)),
    steps=st.integers(1, 60),
    final=st.sampled_from(["zero", "sigma_min"]),
)
@settings(max_examples=40, deadline=None)
def test_every_grid_falls_strictly(name: str, grid: str, steps: int, final: str) -> None:
    schedule = SCHEDULES[name]
    times = time_grid(grid, schedule, steps, final=final)
    assert times.dtype == np.float64
    assert len(times) in (steps, steps + 1) or final == "sigma_min"
    schedule.nodes(times) if len(times) > 1 else None  # raises unless the noise falls strictly
    if final == "zero":
        assert schedule.sigma(times[-1]) == 0


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 20])
def test_comfyui_grids(steps: int) -> None:
    """Against the definitions on ComfyUI's table of training levels, noisy ones last."""
    for name in ("sd", "flow-config"):
        schedule = SCHEDULES[name]
        trained = schedule.noise_time - np.arange(999, -1, -1)
        ends = np.linspace(trained[-1], trained[0], steps), np.linspace(trained[-1], trained[0], steps + 1)[:-1]
        np.testing.assert_allclose(GRIDS["normal"](schedule, steps), ends[0])
        np.testing.assert_allclose(GRIDS["sgm-uniform"](schedule, steps), ends[1])
        simple = [trained[-(1 + int(i * 1000 / steps))] for i in range(steps)]
        np.testing.assert_allclose(GRIDS["simple"](schedule, steps), simple)
        uniform = trained[1 :: 1000 // steps][:steps][::-1]
        np.testing.assert_allclose(GRIDS["ddim-uniform"](schedule, steps), uniform)
        quantiles = beta.ppf(1 - np.linspace(0, 1, steps, endpoint=False), 0.6, 0.6)
        rounded = [trained[int(index)] for index in np.rint(quantiles * 999)]
        np.testing.assert_allclose(GRIDS["beta-time"](schedule, steps), rounded, atol=0.5 + 1e-9)
    angles = np.arctan(np.exp(-SCHEDULES["sd"].lam(GRIDS["kl-optimal"](SCHEDULES["sd"], steps))))
    np.testing.assert_allclose(np.diff(angles, 2), 0, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: time_grid("nope", s, 5), "grid = 'nope'"),
        (lambda s: time_grid("karras", s, 0), "steps = 0"),
        (lambda s: time_grid("karras", s, 2.5), "steps = 2.5"),  # type: ignore[arg-type]
        (lambda s: time_grid("karras", s, 5, final="half"), "final = 'half'"),
        (lambda s: s.nodes([5.0]), "times has shape"),
        (lambda s: s.nodes([1.0, 2.0]), "the noise must fall"),
        (lambda s: s.nodes([2.0, 2.0]), "the noise must fall"),
        (lambda s: s.nodes([2.0, float("nan")]), "must be finite"),
        (lambda s: NoiseSchedule.linear_vp(2.0, 1.0), "beta_min"),
        (lambda s: NoiseSchedule.flow(shift=-1.0), "shift = -1.0"),
        (lambda s: NoiseSchedule.from_config({"beta_schedule": "wavy"}), "beta_schedule = 'wavy'"),
        (lambda s: EDMSchedule(0.0, 80.0, 0.5), "sigma_min, sigma_max = 0.0"),
        (lambda s: EDMSchedule(0.1, 80.0, -1.0), "sigma_data = -1.0"),
        (lambda s: EDMSchedule(0.1, 80.0, 1.0, "cos"), "edm_time = 'cos'"),
        (lambda s: NoiseSchedule.from_config({"snr_shift_scale": -1.0}), "snr_shift_scale = -1.0"),
        (lambda s: NoiseSchedule.from_config({"trained_betas": [2.0, 0.1]}), "trained_betas[0] = 2"),
        (lambda s: NoiseSchedule.from_config({"num_train_timesteps": 0}), "num_train_timesteps = 0"),
    ],
)
def test_wrong_input_is_one_line(call, words: str) -> None:  # type: ignore[no-untyped-def]
    check_refused(lambda: call(SCHEDULES["sd"]), words)
