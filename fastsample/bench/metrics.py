"""Distances: to the converged solution, and between feature distributions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.pipelines.latents import pictures_of


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square difference; inf when either is not finite."""
    value = float((a.cpu().double() - b.cpu().double()).square().mean().sqrt())
    return value if math.isfinite(value) else math.inf


def psnr(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB for signals of range `peak`; -inf when either is not finite."""
    error = rms(a, b)
    if math.isinf(error):
        return -math.inf
    return math.inf if error == 0 else 20 * math.log10(peak / error)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Frechet distance between Gaussians fitted to features [n, d] and [m, d] (Heusel et al., arXiv:1706.08500).

    Raises ValueError for fewer than 2 rows. Biased upwards for few rows: compare equal counts only.
    """
    if len(a) < 2 or len(b) < 2:
        raise ValueError(f"features have {len(a)} and {len(b)} rows: a Frechet distance needs at least 2 of each")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of sqrt(cov_a cov_b), by the symmetric form, real by construction.
    root = scipy.linalg.sqrtm(cov_a + 1e-12 * np.eye(len(cov_a))).real
    eigenvalues = scipy.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    gap = a.mean(0) - b.mean(0)
    return float(max(0.0, gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def decode(pipe: Any, latents: Tensor, batch: int = 64) -> Tensor:
    """Images [n, 3, H, W] in [0, 1] of latents as the scheduler of a Stable Diffusion (1 to 3) pipeline leaves them.

    Of any pipeline, while it draws: :func:`fastsample.pipelines.drawing.draw`.
    """
    return torch.cat([pictures_of(pipe.vae, part) for part in latents.split(batch)])
