"""Triton kernels of fastsample, each beside its torch reference. Triton itself is imported at the first launch."""

from fastsample_kernels.dispatch import choose_backend, forced_backend, requested_backend, use_backend
from fastsample_kernels.linear_step import linear_step
from fastsample_kernels.token_statistics import Gumbel, TokenStatistics, token_statistics
from fastsample_kernels.triangular_mix import triangular_mix
from fastsample_kernels.weighted_step import WeightedStep

__all__ = [
    "Gumbel",
    "TokenStatistics",
    "WeightedStep",
    "choose_backend",
    "forced_backend",
    "linear_step",
    "requested_backend",
    "token_statistics",
    "triangular_mix",
    "use_backend",
]
