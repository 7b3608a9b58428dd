"""Exact Gaussian data through schedulers and in torch: they make what is computed, on the grids of laid_grids.py."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from laid_grids import FAMILIES, OWN_AND_NAMED, grid_of, mu_of

import fastsample as fs
from fastsample.tables.gaussian import gaussian_output, gaussian_spread
from fastsample.testing import gaussian_model

STD = 0.5
EULER = diffusers.FlowMatchEulerDiscreteScheduler
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
CONFIGS = {
    **{family: config for family, config in FAMILIES.items() if family in ("vp", "zero-snr")},
    **{f"flow-{shift:g}": EULER(shift=shift).config for shift in (1.0, 3.0, 12.0)},
    "flow-dynamic": EULER(**DYNAMIC).config,
    "edm": diffusers.EDMEulerScheduler().config,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_grids_laid_out_without_a_scheduler_are_a_scheduler_s(family: str) -> None:
    """Every grid on every family, from the config of diffusers' own class, at every number of steps."""
    mu = {"mu": mu_of(family)} if mu_of(family) else {}
    for grid in OWN_AND_NAMED:
        scheduler = fs.create_scheduler("ddim", CONFIGS[family], grid=grid)
        schedule = fs.NoiseSchedule.from_config(scheduler.config)
        for steps in (5, 6, 10, 15, 20, 28, 35, 50):
            scheduler.set_timesteps(steps, **mu)
            laid, output, nodes = grid_of(family, grid, steps)
            assert nodes == scheduler._run.grid
            assert output == schedule.output_type(scheduler.config.prediction_type)
            assert laid.nodes_at([node.time for node in nodes]) == schedule.nodes_at([node.time for node in nodes])


@pytest.mark.parametrize("family", ["vp", "zero-snr", "flow-3", "edm"])
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc", "ghvb", "heun", "dpmpp-2m-sde"])
def test_schedulers_make_what_is_computed(name: str, family: str) -> None:
    """A run of the scheduler on 20000 samples: their spread is the computed one."""
    scheduler = fs.create_scheduler(name, CONFIGS[family])
    schedule = fs.NoiseSchedule.from_config(scheduler.config)
    output = schedule.output_type(scheduler.config.prediction_type)
    scheduler.set_timesteps(12)
    table, count = scheduler._run.table, 20000
    first = table.steps[0].node
    z = torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = math.hypot(first.alpha * STD / schedule.data_scale, first.sigma)
    x, generator = start * z / z.square().mean().sqrt(), torch.Generator().manual_seed(1)
    for step, t in zip(table.steps, scheduler.timesteps, strict=True):
        x = scheduler.step(
            gaussian_output(step.node, output, STD / schedule.data_scale) * x, t, x, generator=generator
        )[0]
    want = gaussian_spread(table, STD / schedule.data_scale)
    error = 5 / math.sqrt(2 * count) if table.stochastic else 1e-6
    assert float(x.square().mean().sqrt()) == pytest.approx(want, rel=error)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_the_exact_model_is_the_posterior_mean(prediction_type: str) -> None:
    """Its prediction of the data is the mean of the data given the sample, by regression over draws."""
    schedule, count = fs.NoiseSchedule.linear_vp(), 200_000
    data = STD * torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0.1, 0.5, 0.9):
        node = schedule.node(t)
        x = node.alpha * data + node.sigma * noise
        exact = {"epsilon": noise, "sample": data, "v_prediction": node.alpha * noise - node.sigma * data}
        wanted = exact.get(prediction_type, noise - data)
        slope = float((x * wanted).sum() / x.square().sum())
        got = gaussian_model(STD, schedule, prediction_type)(x, t) / x
        torch.testing.assert_close(got, torch.full_like(got, slope), rtol=0, atol=5 / math.sqrt(count))
