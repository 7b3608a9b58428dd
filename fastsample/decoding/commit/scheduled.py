"""Rules that commit as many tokens as the schedule says: they differ in which."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fastsample.decoding.commit.rule import CommitRule, Progress, best
from fastsample.decoding.statistics import Statistics


@dataclass(frozen=True)
class _Ranked(CommitRule):
    """The tokens of the largest score.

    alg_temp: Dream's. Above 0, places are drawn without replacement, each with a probability that grows as
    exp(score / alg_temp), in place of the largest scores.
    Raises ValueError for a negative one.
    """

    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        if not self.alg_temp >= 0:
            raise ValueError(f"alg_temp = {self.alg_temp}: give 0 (the largest scores) or more")

    @property
    def random(self) -> bool:
        return self.alg_temp > 0

    @abstractmethod
    def score(self, statistics: Statistics) -> Tensor: ...

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        score = self.score(statistics)
        if self.alg_temp > 0:
            # the largest of scores with Gumbel noise are such a draw (arXiv:1903.06059)
            score = score / self.alg_temp - uniform_of(progress).to(score).log().neg().log()
        return best(score, eligible, progress.quota[:, None])


@dataclass(frozen=True)
class LowConfidence(_Ranked):
    """The most confident tokens; those of low confidence stay masked (LLaDA, arXiv:2502.09992; MaskGIT).

    alg_temp: Dream's: above 0, places are drawn, a probability as exp(confidence / alg_temp) each.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def score(self, statistics: Statistics) -> Tensor:
        return statistics.confidence


@dataclass(frozen=True)
class Margin(_Ranked):
    """The tokens that are farthest ahead of the second likeliest in probability (Dream's "topk_margin").

    alg_temp: as of :class:`LowConfidence`, by the margin.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"margin"})

    def score(self, statistics: Statistics) -> Tensor:
        return statistics.margin


@dataclass(frozen=True)
class Entropy(_Ranked):
    """The tokens of the lowest entropy (Dream's "entropy").

    alg_temp: as of :class:`LowConfidence`, by minus the entropy.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def score(self, statistics: Statistics) -> Tensor:
        return -statistics.entropy


@dataclass(frozen=True)
class Random(CommitRule):
    """Tokens at random places (LLaDA's "random" remasking)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    @property
    def random(self) -> bool:
        return True

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return best(uniform_of(progress), eligible, progress.quota[:, None])


@dataclass(frozen=True)
class Origin(CommitRule):
    """Each token with the schedule's share as its probability (Dream's "origin": the exact reverse process)."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

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
