"""Rules that commit as many tokens as the schedule says: they differ in which."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fastsample.decoding.commit.rule import CommitRule, Progress, best
from fastsample.decoding.statistics import Statistics


@dataclass(frozen=True)
class LowConfidence(CommitRule):
    """The most confident tokens; those of low confidence stay masked (LLaDA, arXiv:2502.09992; MaskGIT)."""

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return best(statistics.confidence, eligible, progress.quota[:, None])


@dataclass(frozen=True)
class Margin(CommitRule):
    """The tokens that are farthest ahead of the second likeliest in probability (Dream's "topk_margin")."""

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return best(statistics.margin, eligible, progress.quota[:, None])


@dataclass(frozen=True)
class Entropy(CommitRule):
    """The tokens of the lowest entropy (Dream's "entropy")."""

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return best(-statistics.entropy, eligible, progress.quota[:, None])


@dataclass(frozen=True)
class Random(CommitRule):
    """Tokens at random places (LLaDA's "random" remasking)."""

    @property
    def random(self) -> bool:
        return True

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return best(uniform_of(progress), eligible, progress.quota[:, None])


@dataclass(frozen=True)
class Origin(CommitRule):
    """Each token with the schedule's share as its probability (Dream's "origin": the exact reverse process)."""

    @property
    def random(self) -> bool:
        return True

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return eligible & (uniform_of(progress) < progress.share[:, None])


def uniform_of(progress: Progress) -> Tensor:
    """The random numbers of a step; ValueError where it has none."""
    if progress.uniform is None:
        raise ValueError("progress.uniform = None: a random rule needs numbers in (0, 1), one a position")
    return progress.uniform
