"""Noise of one path: a unit normal for every step, independent of other steps; a long step the sum of short ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pipelines import SD_CONFIG, stable_diffusion
from scipy import stats

import fastsample as fs
from fastsample.sampling.brownian import BrownianPath, increment_weights
from fastsample.schedules.base import Node
from fastsample.solvers import available
from fastsample.tables.spans import noise_spans

VP = fs.NoiseSchedule.from_config(SD_CONFIG)
FLOW = fs.NoiseSchedule.flow()
STOCHASTIC = [name for name, solver in available().items() if solver.stochastic]


def at(lam: float) -> Node:
    """The VP point of log(alpha / sigma) `lam`; -inf is pure noise."""
    alpha = math.exp(-0.5 * np.logaddexp(0.0, -2.0 * lam))
    return Node(0.0, alpha, math.sqrt(1 - alpha**2))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


LAMS = (-math.inf, -8.0, -4.7, -2.9, -2.8, -0.3, 0.6, 0.602, 3.0, 9.0, 19.0, 40.0)


@pytest.mark.parametrize(("start", "end"), [(a, b) for i, a in enumerate(LAMS) for b in LAMS[i + 1 :]])
def test_every_step_draws_a_unit_of_noise(start: float, end: float) -> None:
    assert math.fsum(w**2 for w in increment_weights(at(start), at(end)).values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.37, 2.1])
def test_steps_that_share_nothing_are_independent_and_a_step_is_the_sum_of_its_parts(shift: float) -> None:
    nodes = [at(lam + shift) for lam in (-6.0, -4.1, -1.0, -0.2, 0.9, 4.0)]
    parts = [increment_weights(*pair) for pair in pairwise(nodes)]
    for one in range(len(parts)):
        for two in range(one):
            shared = parts[one].keys() & parts[two].keys()
            assert math.fsum(parts[one][k] * parts[two][k] for k in shared) == pytest.approx(0, abs=1e-7)
    widths = [math.sqrt((b.alpha / b.sigma) ** 2 - (a.alpha / a.sigma) ** 2) for a, b in pairwise(nodes)]
    whole = increment_weights(nodes[0], nodes[-1])
    summed = {key: sum(w * part.get(key, 0.0) for w, part in zip(widths, parts, strict=True)) for key in whole}
    scale = math.hypot(*widths)
    assert max(abs(whole[key] - summed[key] / scale) for key in whole) < 3e-3  # points are rounded to 2e-3 in lam


def test_a_path_is_normal_noise_that_depends_on_its_seed_alone() -> None:
    like = torch.empty(3, 4, 40, 40)
    drawn = BrownianPath.drawn(3, [seeded(0), seeded(1), seeded(0)]).noise(like, at(-3), at(0.5))
    assert torch.equal(drawn[0], drawn[2])
    assert abs(float((drawn[0] * drawn[1]).mean())) < 4 / math.sqrt(drawn[0].numel())
    assert stats.kstest(drawn[:2].flatten().numpy(), "norm").pvalue > 1e-4
    alone = BrownianPath.drawn(1, [seeded(1)]).noise(like[:1].double(), at(-3), at(0.5))
    torch.testing.assert_close(alone[0].float(), drawn[1], rtol=1e-6, atol=1e-6)
    assert BrownianPath.of_seed(5, 2).seeds == BrownianPath.of_seed(5, 7).seeds[:2]


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_correlated_draws_leave_the_marginal_as_it_is(name: str, schedule: fs.NoiseSchedule) -> None:
    """A solver that draws twice from one interval must not count it twice: the end has the variance of its level."""
    if not available()[name].flow and schedule is FLOW:
        pytest.skip("not a solver of flow models")
    times = [part * schedule.noise_time for part in (0.97, 0.8, 0.55, 0.4, 0.2)]
    table = fs.build_table(name, schedule, times, prediction_type="sample")
    if not table.exact_variance:
        pytest.skip("keeps the variance to first order alone")
    draws = [increment_weights(*span) for span in noise_spans(table)]
    unrolled = table.unroll()
    total: dict[int, float] = {}
    for weight, draw in zip(unrolled.c[-1], draws, strict=True):
        for key, part in draw.items():
            total[key] = total.get(key, 0.0) + weight * part
    first, last = table.steps[0].node, table.steps[-1].target
    variance = (unrolled.a[-1] * first.sigma) ** 2 + math.fsum(value**2 for value in total.values())
    assert variance == pytest.approx(last.sigma**2, rel=1e-6)


def sampled(steps: int, noise: str, seeds: int = 48, **options: Any) -> torch.Tensor:
    """The end of SDE-DPM-Solver++ on Gaussian data, by `integrate`."""
    table = fs.build_table("dpmpp-2m-sde", VP, fs.time_grid("karras", VP, steps, final="sigma_min"), **options)
    from fastsample.testing import gaussian_model

    x = torch.randn(seeds, 16, generator=seeded(3))
    generators = [seeded(seed) for seed in range(seeds)]
    return fs.integrate(table, gaussian_model(0.5, VP), x, generator=generators, noise=noise)


def correlation(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1])


def test_step_counts_agree_on_a_path_and_not_without() -> None:
    coarse, middle, fine = (sampled(steps, "brownian") for steps in (10, 20, 40))
    assert correlation(coarse, fine) > 0.9
    assert correlation(middle, fine) > 0.97
    assert float(fine.std()) == pytest.approx(0.5, rel=0.1)
    assert abs(correlation(sampled(10, "independent"), sampled(40, "independent"))) < 0.3
    with pytest.raises(ValueError, match=r"noise = 'pink'.*'brownian'"):
        sampled(2, "pink")


@pytest.mark.parametrize("solver", ["dpmpp-2m-sde", "dpmpp-sde", "euler"])
def test_a_scheduler_draws_what_integrate_draws_alone_and_in_a_batch(solver: str) -> None:
    options: dict[str, Any] = {"eta": 1.0} if solver == "euler" else {}
    scheduler = fs.create_scheduler(solver, SD_CONFIG, grid="karras", noise="brownian", **options)
    x = torch.randn(3, 2, 4, 4, generator=seeded(9))

    def run(rows: list[int]) -> torch.Tensor:
        generators = [seeded(row) for row in rows]
        scheduler.set_timesteps(6)
        sample = x[rows]
        for t in scheduler.timesteps:
            sample = scheduler.step(torch.tanh(sample), t, sample, generator=generators).prev_sample
        return sample

    together = run([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(run([row])[0], together[row], rtol=1e-5, atol=1e-5)
    scheduler.set_timesteps(6)
    table = scheduler.state().table
    direct = fs.integrate(
        table, lambda s, t: torch.tanh(s), x, generator=list(map(seeded, range(3))), noise="brownian"
    )
    torch.testing.assert_close(together, direct, rtol=1e-4, atol=1e-4)


def test_rows_stepped_one_after_another_follow_paths_of_their_own() -> None:
    scheduler = fs.create_scheduler("dpmpp-1-sde", SD_CONFIG, noise="brownian")
    scheduler.set_timesteps(4)
    rows = list(torch.randn(2, 1, 4, 8, 8, generator=seeded(1)).unbind())
    generators = [seeded(0), seeded(1)]
    want = []
    for row, generator in zip(rows, [seeded(0), seeded(1)], strict=True):
        alone = fs.create_scheduler("dpmpp-1-sde", SD_CONFIG, noise="brownian")
        alone.set_timesteps(4)
        for t in alone.timesteps:
            row = alone.step(0 * row, t, row, generator=generator).prev_sample
        want.append(row)
    for t in scheduler.timesteps:
        rows = [
            scheduler.step(0 * row, t, row, generator=own).prev_sample
            for row, own in zip(rows, generators, strict=True)
        ]
    for got, expected in zip(rows, want, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_pipeline_follows_its_path_and_two_calls_do_not_share_one() -> None:
    pipe = stable_diffusion()
    pipe.scheduler = fs.scheduler_from_name("DPM++ 2M SDE Karras", pipe.scheduler.config, noise="brownian")
    call = {"prompt": "a small red circle", "output_type": "latent", "num_inference_steps": 4}
    generator = seeded(4)
    first, second = (pipe(**call, generator=generator).images for _ in range(2))
    again = pipe(**call, generator=seeded(4)).images
    assert torch.equal(first, again)
    assert abs(correlation(first, second)) < 0.5
    kept = fs.create_scheduler("ddim", pipe.scheduler.config, noise="brownian")
    assert type(kept).from_config(kept.config).config.noise == "brownian"
    with pytest.raises(ValueError, match="noise = 'blue'"):
        fs.create_scheduler("ddim", SD_CONFIG, noise="blue")
