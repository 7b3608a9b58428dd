"""Commit rules as diffusers schedulers, for `LLaDA2Pipeline` and `DiffusionGemmaPipeline`.

    pipe.scheduler = fastsample.ProphetScheduler.from_config(pipe.scheduler.config)

The call's `threshold` belongs to the first two; the others go by their config alone. The module of each class is
written into saved pipelines: it is final.
"""

from __future__ import annotations

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.decoding.block_refinement import BLOCK_CONFIG, AboveThreshold, CommitScheduler
from fastsample.decoding.commit import CommitRule, Entropy, EntropyBounded, Factor, Hierarchy, Margin, Prophet
from fastsample.schedulers.config import configured


@configured(BLOCK_CONFIG)
class ThresholdScheduler(CommitScheduler):
    """diffusers' own rule: every token of a confidence above `threshold`, at least the quota.

    Same text as `BlockRefinementScheduler`, without its waits for the device and its extra forward after a block.
    """

    def rule(self, threshold: float) -> CommitRule:
        return AboveThreshold(threshold)


@configured(BLOCK_CONFIG, thresholds=(7.5, 5.0, 2.5), region=None, progress="code", phases=(0.33, 0.67))
class ProphetScheduler(CommitScheduler):
    """Prophet (arXiv:2508.19982): the whole block as soon as the mean logit gap of a region is large enough.

    Until then as :class:`ThresholdScheduler`; call the pipeline with a threshold above 1 for the quota alone. Options
    as in :class:`fastsample.Prophet`; `region`, (start, length), counts from the block's first position, and progress
    is that of the block. For the whole response at once, make the block hold the prompt and all of `gen_length`.
    """

    def rule(self, threshold: float) -> CommitRule:
        config = self.config
        region = None if config.region is None else tuple(config.region)
        base = AboveThreshold(threshold)
        return Prophet(tuple(config.thresholds), region, config.progress, base, tuple(config.phases))


@configured(BLOCK_CONFIG, factor=1.0)
class FactorScheduler(CommitScheduler):
    """Fast-dLLM's factor rule (arXiv:2505.22618): see :class:`fastsample.Factor`."""

    def rule(self, threshold: float) -> CommitRule:
        return Factor(self.config.factor)


@configured(BLOCK_CONFIG, gamma=0.1)
class EntropyBoundedScheduler(CommitScheduler):
    """Tokens of low entropy up to a bound (arXiv:2505.24857): see :class:`fastsample.EntropyBounded`."""

    def rule(self, threshold: float) -> CommitRule:
        return EntropyBounded(self.config.gamma)


@configured(BLOCK_CONFIG, confidence=0.9, least=0.4)
class HierarchyScheduler(CommitScheduler):
    """dInfer's rule (arXiv:2510.08666): see :class:`fastsample.Hierarchy`."""

    def rule(self, threshold: float) -> CommitRule:
        return Hierarchy(self.config.confidence, self.config.least)


@configured(BLOCK_CONFIG)
class MarginScheduler(CommitScheduler):
    """The quota of the tokens farthest ahead of the second likeliest (Dream)."""

    def rule(self, threshold: float) -> CommitRule:
        return Margin()


@configured(BLOCK_CONFIG)
class EntropyScheduler(CommitScheduler):
    """The quota of the tokens of lowest entropy (Dream)."""

    def rule(self, threshold: float) -> CommitRule:
        return Entropy()
