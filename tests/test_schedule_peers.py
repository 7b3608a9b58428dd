"""Noise schedules and grids against diffusers' own tensors."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from fastsample.schedules import GRIDS, NoiseSchedule, time_grid
from fastsample.schedules.flow import dynamic_shift, shift_sigmas

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
VP = NoiseSchedule.from_config(SD)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_discrete_betas_are_those_of_diffusers(beta_schedule: str, zero_snr: bool) -> None:
    config = {**SD, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    peer = diffusers.DDIMScheduler(**config).alphas_cumprod
    ours = NoiseSchedule.from_config(config).alpha(np.arange(1000)) ** 2
    torch.testing.assert_close(torch.from_numpy(ours).float(), peer, rtol=2e-4, atol=1e-6)


def test_dynamic_shift_formulas() -> None:
    sigmas = np.linspace(0, 1, 11)
    peer = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for kind in ("exponential", "linear"):
        peer.register_to_config(time_shift_type=kind)
        want = peer.time_shift(0.8, 1.0, sigmas[1:])
        np.testing.assert_allclose(shift_sigmas(sigmas[1:], dynamic_shift(0.8, kind)), want, rtol=1e-12)


@pytest.mark.parametrize(
    ("grid", "config", "published"),
    [
        ("ays-sd15", SD, "StableDiffusion"),
        ("ays-sdxl", SD, "StableDiffusionXL"),
        ("ays-svd", {"sigma_min": 0.002, "sigma_max": 700.0, "sigma_data": 1.0}, "StableDiffusionVideo"),
    ],
)
def test_align_your_steps_are_the_published_ones(grid: str, config: dict, published: str) -> None:
    schedule = NoiseSchedule.from_config(config)
    levels = diffusers.schedulers.AysSchedules[f"{published}Sigmas"]
    times = time_grid(grid, schedule, 10)
    np.testing.assert_allclose(schedule.sigma(times) / schedule.alpha(times), levels, rtol=2e-4)
    if f"{published}Timesteps" in diffusers.schedulers.AysSchedules:
        np.testing.assert_allclose(times[:-1], diffusers.schedulers.AysSchedules[f"{published}Timesteps"], atol=0.6)
    # twice the steps: the same levels and the geometric means between them
    lam = schedule.lam(time_grid(grid, schedule, 20)[:-1])
    np.testing.assert_allclose(lam[1:-1:2], (lam[:-2:2] + lam[2::2]) / 2, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [2, 3, 8, 64])
def test_linear_quadratic_is_that_of_mochi(steps: int) -> None:
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    want = linear_quadratic_schedule(steps, 0.025)
    np.testing.assert_allclose(GRIDS["linear-quadratic"](NoiseSchedule.flow(), steps), want, atol=1e-12)
    level = np.exp(-VP.lam(GRIDS["linear-quadratic"](VP, steps)))
    np.testing.assert_allclose(level / level[0], want, rtol=1e-9)
