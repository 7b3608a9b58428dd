"""Decoding of masked diffusion language models: after each forward, which tokens are committed.

    statistics = statistics_of(logits)                                  # [B, L, V] -> a candidate a position
    chosen = rule.commit(statistics, masked, eligible, progress)        # bool [B, L], a subset of masked
    tokens = torch.where(chosen, statistics.token, tokens)

A rule is immutable and without state. `masked` are the undecided positions of the columns at hand, `eligible` those
that the current block lets commit (a rule such as Prophet may commit the rest too), and :class:`Progress` says where
each row stands: step, steps, and the schedule's quota. Columns may be the whole response or any window of it
(`Progress.first`). Everything is vectorised over rows and free of host synchronisation.
"""

from fastsample.decoding.commit import (
    After,
    CommitRule,
    Entropy,
    EntropyBounded,
    Factor,
    Hierarchy,
    LowConfidence,
    Margin,
    Origin,
    Progress,
    Prophet,
    Random,
    Threshold,
    anchor,
)
from fastsample.decoding.statistics import Sampling, Statistics, statistics_of

__all__ = [
    "After",
    "CommitRule",
    "Entropy",
    "EntropyBounded",
    "Factor",
    "Hierarchy",
    "LowConfidence",
    "Margin",
    "Origin",
    "Progress",
    "Prophet",
    "Random",
    "Sampling",
    "Statistics",
    "Threshold",
    "anchor",
    "statistics_of",
]
