"""Decoding of masked diffusion language models: after each forward, which tokens are committed.

    statistics = statistics_of(logits)                                  # [B, L, V] -> a candidate a position
    chosen = rule.commit(statistics, masked, eligible, progress)        # bool [B, L], a subset of masked
    tokens = torch.where(chosen, statistics.token, tokens)

A rule is immutable and without state. `masked` are the undecided positions of the columns at hand, `eligible` those
that the current block lets commit (a rule such as Prophet may commit the rest too), and :class:`Progress` says where
each row stands: step, steps, and the schedule's quota. Columns may be the whole response or any window of it
(`Progress.first`). Everything is vectorised over rows and free of host synchronisation.

:func:`decode_masked` is the engine, for any callable; :class:`fastsample.MaskedDiffusionPipeline` is made of it.
"""

from fastsample.decoding.adapters import Adapter, adapter_of, mask_token_of
from fastsample.decoding.cache import Caching
from fastsample.decoding.commit import (
    KLASS,
    PUNT,
    WINO,
    After,
    Checked,
    CommitRule,
    Credit,
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
    Risk,
    Threshold,
    anchor,
)
from fastsample.decoding.decode import decode_masked
from fastsample.decoding.decoder import Decoder
from fastsample.decoding.ledger import DecodingLedger
from fastsample.decoding.plan import DecodingPlan, Trial, plan_decoding
from fastsample.decoding.refinement import LatentRefinement
from fastsample.decoding.rows import Commit
from fastsample.decoding.statistics import Sampling, Statistics, statistics_of

__all__ = [
    "KLASS",
    "PUNT",
    "WINO",
    "Adapter",
    "After",
    "Caching",
    "Checked",
    "Commit",
    "CommitRule",
    "Credit",
    "Decoder",
    "DecodingLedger",
    "DecodingPlan",
    "Entropy",
    "EntropyBounded",
    "Factor",
    "Hierarchy",
    "LatentRefinement",
    "LowConfidence",
    "Margin",
    "Origin",
    "Progress",
    "Prophet",
    "Random",
    "Risk",
    "Sampling",
    "Statistics",
    "Threshold",
    "Trial",
    "adapter_of",
    "anchor",
    "decode_masked",
    "mask_token_of",
    "plan_decoding",
    "statistics_of",
]
