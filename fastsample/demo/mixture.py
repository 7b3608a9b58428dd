"""A Gaussian mixture whose diffusion model is known exactly, and its probability-flow ODE solved by SciPy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastsample.cache import cache_folder, replacing
from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.tables.prediction import check_prediction_type
from fastsample.tables.table import output_of


@dataclass(frozen=True)
class GaussianMixture:
    """`sum_k weights[k] N(means[k], stds[k]^2 I)` in d dimensions.

    `means` [k, d], `stds` [k], `weights` [k] (summing to 1), float64. Exact predictions follow from the
    posterior over components given `x = alpha data + sigma noise`.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        count = self.means.shape[0]
        if self.means.ndim != 2 or self.stds.shape != (count,) or self.weights.shape != (count,):
            shapes = tuple(self.means.shape), tuple(self.stds.shape), tuple(self.weights.shape)
            raise ValueError(f"means, stds, weights have shapes {shapes}: give [k, d], [k], [k]")
        if not bool((self.stds > 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise ValueError("stds must be positive and weights sum to 1")

    @classmethod
    def random(cls, components: int = 5, dims: int = 2, std: float = 0.25, seed: int = 0) -> GaussianMixture:
        """Means drawn from N(0, I), equal weights, one `std`."""
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(components, dims, generator=generator, dtype=torch.float64)
        ones = torch.ones(components, dtype=torch.float64)
        return cls(means, std * ones, ones / components)

    def data_prediction(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[data | x] for x [n, d] = alpha data + sigma noise."""
        means, stds, weights = (value.to(x) for value in (self.means, self.stds, self.weights))
        variance = alpha**2 * stds**2 + sigma**2
        distance = ((x[:, None, :] - alpha * means) ** 2).sum(-1)
        log_posterior = weights.log() - 0.5 * distance / variance - 0.5 * x.shape[1] * variance.log()
        posterior = log_posterior.softmax(-1)
        gain = alpha * stds**2 / variance
        centres = means + gain[:, None] * (x[:, None, :] - alpha * means)
        return (posterior[..., None] * centres).sum(1)

    def model(
        self, schedule: NoiseSchedule, prediction_type: str = "epsilon"
    ) -> Callable[[Tensor, float | Tensor], Tensor]:
        """The exact `model(x, t)` of `prediction_type` on `schedule`, in x's dtype; t is one time, or one a row."""
        check_prediction_type(prediction_type)

        def predict(x: Tensor, t: float | Tensor) -> Tensor:
            if isinstance(t, Tensor) and t.ndim:
                output = torch.empty_like(x)
                for time in t.unique().tolist():
                    output[t == time] = predict(x[t == time], time)
                return output
            return self.output(x, schedule.node(float(t)), prediction_type)

        return predict

    def output(self, x: Tensor, node: Node, prediction_type: str) -> Tensor:
        """The exact output at a node. At sigma = 0 only the data prediction exists."""
        data = self.data_prediction(x, node.alpha, node.sigma)
        noise = (x - node.alpha * data) / node.sigma if node.sigma > 0 else torch.full_like(x, math.nan)
        output: Tensor = output_of(node, prediction_type, data, noise)
        return output

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """`count` draws [count, d] from the mixture itself."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[which] + self.stds[which, None] * noise

    def reference(
        self, schedule: NoiseSchedule, x: Tensor, start: float, end: float, tolerance: float = 1e-11
    ) -> Tensor:
        """x [n, d] at time `start` carried to time `end` by the exact ODE (SciPy's DOP853), in float64.

        Results are cached on disk by a hash of all arguments (`FASTSAMPLE_CACHE`, or ~/.cache/fastsample).
        """
        x = x.double()
        path = _cache_path(self, schedule, x, start, end, tolerance)
        if path.exists():
            return torch.from_numpy(np.load(path))
        result = self.integrate(schedule, x, start, end, tolerance)
        with replacing(path) as partial, partial.open("wb") as file:
            np.save(file, result.numpy())
        return result

    def integrate(self, schedule: NoiseSchedule, x: Tensor, start: float, end: float, tolerance: float) -> Tensor:
        """As :meth:`reference`, without the cache on disk.

        With y = x / (alpha + sigma) it solves `dy/du = noise - data` in u = sigma / (alpha + sigma), which runs over
        [0, 1] and is regular at zero SNR and on clean data.
        """
        from scipy.integrate import solve_ivp  # SciPy is slow to load, and only this needs it

        def level(t: float) -> tuple[float, float]:
            alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
            return sigma / (alpha + sigma), alpha + sigma

        (u0, scale0), (u1, scale1) = level(start), level(end)
        floor = max(u1, 1e-9)

        def slope(u: float, flat: np.ndarray) -> np.ndarray:
            y = torch.from_numpy(flat.reshape(x.shape))
            data = self.data_prediction(y, 1 - u, u)
            return ((y - data) / u).numpy().ravel()

        solved = solve_ivp(slope, (u0, floor), (x / scale0).numpy().ravel(), "DOP853", rtol=tolerance, atol=tolerance)
        if not solved.success:
            raise RuntimeError(f"DOP853 failed from time {start:g} to {end:g}: {solved.message}")
        return torch.from_numpy(solved.y[:, -1].reshape(x.shape)) * scale1


def _cache_path(
    mixture: GaussianMixture, schedule: NoiseSchedule, x: Tensor, start: float, end: float, tolerance: float
) -> Path:
    marginals = [[float(schedule.alpha(t)), float(schedule.sigma(t))] for t in (start, end)]
    digest = hashlib.sha256(repr((marginals, tolerance)).encode())
    for tensor in (mixture.means, mixture.stds, mixture.weights, x):
        digest.update(tensor.contiguous().numpy().tobytes())
    return cache_folder() / f"mixture-{digest.hexdigest()[:24]}.npy"
