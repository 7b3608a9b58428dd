"""Adaptive DPM-Solver-12 and -23, and DPM-Solver-fast's plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample.sampling import integrate_adaptive
from fastsample.tables.orders import fast_blocks

VP, FLOW = fs.NoiseSchedule.linear_vp(), fs.NoiseSchedule.flow()
MIXTURE = fs.GaussianMixture.random(components=3, dims=2, std=0.4, seed=1)


def start(schedule: fs.NoiseSchedule, time: float) -> torch.Tensor:
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(schedule.alpha(time)) * MIXTURE.sample(32) + float(schedule.sigma(time)) * noise


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
@pytest.mark.parametrize("space", ["noise", "data"])
@pytest.mark.parametrize("order", [2, 3])
def test_tolerance_bounds_the_error(order: int, space: str, schedule: fs.NoiseSchedule) -> None:
    prediction = "epsilon" if schedule is VP else "flow_prediction"
    model = MIXTURE.model(schedule, prediction)
    x = start(schedule, 0.9)
    exact = MIXTURE.integrate(schedule, x, 0.9, 0.05, 1e-11)
    calls, errors, counts = [0], [], []

    def counted(x: torch.Tensor, t: float) -> torch.Tensor:
        calls[0] += 1
        return model(x, t)

    for tolerance in (3e-2, 3e-3, 3e-4):
        calls[0] = 0
        result = integrate_adaptive(
            schedule,
            counted,
            x,
            order=order,
            space=space,  # type: ignore[arg-type]
            prediction_type=prediction,
            start=0.9,
            end=0.05,
            rtol=tolerance,
            atol=tolerance,
            max_evaluations=5000,
        )
        assert result.evaluations == calls[0]
        assert result.times[0] == 0.9
        assert result.times[-1] == 0.05
        assert np.all(np.diff(result.times) < 0)
        errors.append(float((result.sample - exact).square().mean().sqrt()))
        counts.append(calls[0])
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 3e-3
    assert counts[0] < counts[1] < counts[2]


def test_a_rejected_step_keeps_the_first_evaluation() -> None:
    """A first step that is far too long is cut; each try costs order - 1 further evaluations."""
    x = start(VP, 0.9)
    result = integrate_adaptive(VP, MIXTURE.model(VP), x, start=0.9, end=0.05, first_step=6.0, rtol=1e-3, atol=1e-3)
    assert result.rejected >= 1
    assert result.evaluations == 3 * (len(result.times) - 1) + 2 * result.rejected


@pytest.mark.parametrize("order", [2, 3])
def test_no_step_is_tried_again_at_its_length(order: int) -> None:
    """After steps without error, which let the next be of any length, up to the end."""
    tried: list[float] = []

    def easy_then_hard(x: torch.Tensor, t: float) -> torch.Tensor:
        tried.append(t)
        return 3 * x.sin() if t < 0.7 else 0 * x

    result = integrate_adaptive(VP, easy_then_hard, start(VP, 0.9), order=order)
    assert result.rejected >= 1
    assert len(set(tried)) == len(tried)


def test_defaults_run_from_zero_snr_to_the_last_trained_noise() -> None:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    for schedule, prediction in ((FLOW, "flow_prediction"), (VP, "epsilon")):
        result = integrate_adaptive(schedule, MIXTURE.model(schedule, prediction), x, prediction_type=prediction)
        assert result.sample.dtype == torch.float32
        assert float(result.sample.abs().max()) < 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"order": 1}, "order = 1"),
        ({"space": "v"}, "space = 'v'"),
        ({"rtol": 0}, "rtol = 0"),
        ({"first_step": float("nan")}, "first_step = nan"),
        ({"start": 0.1, "end": 0.5}, "start, end = 0.1, 0.5"),
    ],
)
def test_wrong_options_die_before_the_model(options: dict[str, float], words: str) -> None:
    def never(x: torch.Tensor, t: float) -> torch.Tensor:
        raise AssertionError("the model was run")

    with pytest.raises(ValueError, match=words):
        integrate_adaptive(VP, never, torch.zeros(1, 2), **options)  # type: ignore[arg-type]


def test_too_few_evaluations_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="max_evaluations = 7"):
        integrate_adaptive(VP, MIXTURE.model(VP), start(VP, 1.0), max_evaluations=7)


@pytest.mark.parametrize("space", ["noise", "data"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("first", [1, 2, 3, 5, 8])
def test_the_first_output_that_is_not_finite_is_named(order: int, space: str, bad: float, first: int) -> None:
    """Whichever evaluation it is, in one value of one image."""
    times: list[float] = []
    model = MIXTURE.model(VP)

    def breaks(x: torch.Tensor, t: float) -> torch.Tensor:
        times.append(t)
        output = model(x, t)
        if len(times) >= first:
            output[3, 1] = bad
        return output

    with pytest.raises(RuntimeError) as caught:
        integrate_adaptive(VP, breaks, start(VP, 0.9), order=order, space=space, start=0.9, end=0.05)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"model output at time {times[first - 1]:g} is not finite: ")
    assert "\n" not in str(caught.value)
    assert len(times) <= first + order - 1  # of one step


def test_a_start_that_is_not_finite_is_refused_before_the_model() -> None:
    def never(x: torch.Tensor, t: float) -> torch.Tensor:
        raise AssertionError("the model was run")

    x = torch.zeros(2, 3)
    x[1, 2] = float("nan")
    with pytest.raises(ValueError, match="x is not finite: give the sample at time"):
        integrate_adaptive(VP, never, x)


def test_a_sample_that_overflows_is_told_from_a_model_that_does() -> None:
    with pytest.raises(RuntimeError, match=r"sample after time 0\.9 is not finite, its model outputs are"):
        integrate_adaptive(VP, lambda x, t: torch.zeros_like(x), torch.full((1, 2), 6.5e4).half(), start=0.9)


@pytest.mark.parametrize("evaluations", range(1, 25))
def test_fast_spends_its_evaluations(evaluations: int) -> None:
    blocks = fast_blocks(evaluations)
    assert sum(blocks) == evaluations
    if evaluations >= 3:
        assert len(blocks) == evaluations // 3 + 1
    times = VP.time(np.linspace(VP.lam(1.0), VP.lam(1e-3), len(blocks) + 1))
    table = fs.build_table("dpm-3s", VP, times, blocks=blocks)
    assert table.nfe == evaluations


def test_blocks_belong_to_single_step_solvers() -> None:
    for name, blocks in (("dpm-2m", [1, 1]), ("heun", [2, 1]), ("dpm-3s", [3]), ("dpm-2s", [3, 1])):
        with pytest.raises(ValueError, match="blocks ="):
            fs.build_table(name, VP, [0.9, 0.5, 0.1], blocks=blocks)
