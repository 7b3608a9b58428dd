"""Rules that ignore the schedule: they commit every token that is sure enough, and at least the best one of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.decoding.commit.rule import CommitRule, Progress, best, check_probability, ranks
from fastsample.decoding.statistics import Statistics


@dataclass(frozen=True)
class Threshold(CommitRule):
    """The tokens of at least `confidence` (Fast-dLLM, arXiv:2505.22618)."""

    confidence: float = 0.9

    def __post_init__(self) -> None:
        check_probability("confidence", self.confidence)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        sure = eligible & (statistics.confidence >= self.confidence)
        return sure | best(statistics.confidence, eligible, 1)


@dataclass(frozen=True)
class Factor(CommitRule):
    """The n most confident tokens, n the largest with (n + 1) (1 - c_n) < `factor`, c_n the n-th confidence.

    Fast-dLLM, arXiv:2505.22618, theorem 1: up to factor 1 greedy decoding of the n tokens at once is that of their
    joint distribution.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"factor = {self.factor}: give a number above 0")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        order = ranks(statistics.confidence, eligible)
        # it grows with the rank, so that those below the bound are the first n
        sure = (order + 2) * (1 - statistics.confidence) < self.factor
        return eligible & (sure | (order == 0))


@dataclass(frozen=True)
class Risk(CommitRule):
    """As many of the most confident tokens as keep the sum of 1 - confidence within `budget`.

    By the union bound, the probability that any of them is not what the model would have it is at most the budget.
    """

    budget: float = 0.1

    def __post_init__(self) -> None:
        if not self.budget >= 0:
            raise ValueError(f"budget = {self.budget}: give 0 (one token a forward) or more")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        doubt, order = (1 - statistics.confidence).masked_fill(~eligible, torch.inf).sort(dim=-1, stable=True)
        within = torch.empty_like(eligible).scatter_(-1, order, doubt.cumsum(-1) <= self.budget)
        return (eligible & within) | best(statistics.confidence, eligible, 1)


@dataclass(frozen=True)
class EntropyBounded(CommitRule):
    """As many tokens of lowest entropy as keep (sum of their entropies) - (the largest of them) <= `gamma`, in nats.

    Ben-Hamu et al. 2025 (EB-sampler, arXiv:2505.24857): a bound on the mutual information of the tokens.
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma = {self.gamma}: give 0 (one token a forward) or more")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"entropy"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        entropy, order = statistics.entropy.masked_fill(~eligible, torch.inf).sort(dim=-1, stable=True)
        before = torch.nn.functional.pad(entropy[..., :-1].cumsum(-1), (1, 0))  # all but the largest, the last
        return eligible & torch.empty_like(eligible).scatter_(-1, order, before <= self.gamma)


@dataclass(frozen=True)
class Hierarchy(CommitRule):
    """The tokens of at least `confidence`, and of each run of masked positions the best one of at least `least`.

    dInfer, arXiv:2510.08666: runs are split where the model is surest, so that neighbours are not guessed at once.
    """

    confidence: float = 0.9
    least: float = 0.4

    def __post_init__(self) -> None:
        check_probability("confidence", self.confidence)
        check_probability("least", self.least)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        confidence = statistics.confidence
        starts = eligible & ~torch.nn.functional.pad(eligible[:, :-1], (1, 0))
        run = torch.where(eligible, starts.cumsum(-1), 0)  # 0 for what is in no run
        order = ranks(confidence, eligible)
        none = order.new_full((len(order), order.shape[-1] + 1), order.shape[-1])
        first = none.scatter_reduce(-1, run, order, "amin").gather(-1, run)  # the lowest rank of each run
        leads = eligible & (order == first) & (confidence >= self.least)
        return leads | (eligible & ((confidence >= self.confidence) | (order == 0)))
