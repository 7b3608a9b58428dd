"""The analytic mixture against definitions: its posterior mean, its score, its ODE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fastsample as fs

VP = fs.NoiseSchedule.linear_vp()


def test_data_prediction_is_the_posterior_mean() -> None:
    """In one dimension, by summation over a fine grid of data."""
    mixture = fs.GaussianMixture(
        *(torch.tensor(v, dtype=torch.float64) for v in ([[-1.0], [2.0]], [0.3, 0.5], [0.3, 0.7]))
    )
    data = torch.linspace(-6, 6, 40001, dtype=torch.float64)
    density = sum(
        w * torch.exp(-0.5 * ((data - m) / s) ** 2) / s
        for w, m, s in zip(mixture.weights, mixture.means[:, 0], mixture.stds, strict=True)
    )
    for alpha, sigma in ((0.9, 0.4), (0.3, 0.95), (0.0, 1.0), (1.0, 0.05)):
        x = torch.tensor([[-0.7], [0.4], [1.8]], dtype=torch.float64)
        likelihood = torch.exp(-0.5 * ((x - alpha * data) / sigma) ** 2) * density
        want = (likelihood * data).sum(1) / likelihood.sum(1)
        torch.testing.assert_close(mixture.data_prediction(x, alpha, sigma)[:, 0], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_outputs_agree_with_each_other(prediction_type: str) -> None:
    mixture, node = fs.GaussianMixture.random(dims=3), VP.node(0.4)
    x = torch.randn(5, 3, dtype=torch.float64)
    from fastsample.tables import prediction_weights

    a, b = prediction_weights(node, prediction_type, "data")
    data = a * x + b * mixture.model(VP, prediction_type)(x, 0.4)
    torch.testing.assert_close(data, mixture.data_prediction(x, node.alpha, node.sigma))


def test_reference_is_the_closed_form_for_one_gaussian_and_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For data N(0, s^2) the ODE scales x by the ratio of the marginals' standard deviations."""
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(tmp_path))
    mixture = fs.GaussianMixture(*(torch.tensor(v, dtype=torch.float64) for v in ([[0.0]], [0.5], [1.0])))
    x = torch.tensor([[1.3], [-0.2]], dtype=torch.float64)
    for schedule, start, end in ((VP, 1.0, 0.0), (fs.NoiseSchedule.flow(), 1.0, 0.0), (VP, 0.7, 0.2)):
        got = mixture.reference(schedule, x, start, end)
        spread = [np.hypot(0.5 * float(schedule.alpha(t)), float(schedule.sigma(t))) for t in (start, end)]
        torch.testing.assert_close(got, x * spread[1] / spread[0], rtol=1e-7, atol=1e-8)
        assert torch.equal(got, mixture.reference(schedule, x, start, end))
    assert len(list(tmp_path.glob("mixture-*.npy"))) == 3


def test_wrong_shapes_are_refused() -> None:
    one = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="have shapes"):
        fs.GaussianMixture(torch.zeros(2, 1), one, one)
    with pytest.raises(ValueError, match="weights sum to 1"):
        fs.GaussianMixture(torch.zeros(1, 1), one, 2 * one)
