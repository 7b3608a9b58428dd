"""Commit rules: which tokens are decided after a forward. One family per file."""

from fastsample.decoding.commit.parallel import EntropyBounded, Factor, Hierarchy, Threshold
from fastsample.decoding.commit.prophet import After, Prophet, Region, anchor
from fastsample.decoding.commit.rule import CommitRule, Progress
from fastsample.decoding.commit.scheduled import Entropy, LowConfidence, Margin, Origin, Random

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
    "Region",
    "Threshold",
    "anchor",
]
