"""Commit rules: which tokens are decided after a forward. One family per file."""

from fastsample.decoding.commit.checked import WINO, Checked
from fastsample.decoding.commit.independent import PUNT
from fastsample.decoding.commit.lasting import KLASS, Credit
from fastsample.decoding.commit.parallel import EntropyBounded, Factor, Hierarchy, Risk, Threshold
from fastsample.decoding.commit.prophet import After, Prophet, Region, anchor
from fastsample.decoding.commit.rule import Checking, CommitRule, Drafts, Probing, Progress, Remembering
from fastsample.decoding.commit.scheduled import Entropy, LowConfidence, Margin, Origin, Random

__all__ = [
    "KLASS",
    "PUNT",
    "WINO",
    "After",
    "Checked",
    "Checking",
    "CommitRule",
    "Credit",
    "Drafts",
    "Entropy",
    "EntropyBounded",
    "Factor",
    "Hierarchy",
    "LowConfidence",
    "Margin",
    "Origin",
    "Probing",
    "Progress",
    "Prophet",
    "Random",
    "Region",
    "Remembering",
    "Risk",
    "Threshold",
    "anchor",
]
