"""Commit rules as diffusers schedulers, for `LLaDA2Pipeline` and `DiffusionGemmaPipeline`.

    pipe.scheduler = fastsample.ProphetScheduler.from_config(pipe.scheduler.config)

The call's `threshold` belongs to the first three; the others go by their config alone. The module of each class is
written into saved pipelines: it is final.
"""

from __future__ import annotations

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module
from torch import Tensor

from fastsample.decoding.block_refinement import BLOCK_CONFIG, AboveThreshold, CommitScheduler
from fastsample.decoding.commit import (
    Checked,
    CommitRule,
    Entropy,
    EntropyBounded,
    Factor,
    Hierarchy,
    Margin,
    Prophet,
    Risk,
)
from fastsample.decoding.statistics import Statistics
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


@configured(BLOCK_CONFIG, certain=0.99, returns=1)
class CheckedScheduler(CommitScheduler):
    """Draft and check, as far as a scheduler can: tokens above `threshold` are drafts, looked at once more together.

    Where a block of a row is full, its drafts of less than the confidence `certain` go back to masks, at most
    `returns` times each, and are decided again by what stands around them. :class:`fastsample.Checked` looks at
    drafts in the forwards that are made anyway; a pipeline that makes the model's input itself leaves no room for
    that, so here a check is a forward more. Nothing goes back where the steps that are left could not decide it.
    """

    _drafts: tuple[Tensor, Tensor] | None = None  # confidence and returns of the block's positions

    def _prepare(self) -> None:
        super()._prepare()
        Checked(self.config.certain, returns=self.config.returns)

    def rule(self, threshold: float) -> CommitRule:
        return AboveThreshold(threshold)

    def taken_back(self, statistics: Statistics, chosen: Tensor, left: Tensor, step: int) -> Tensor | None:
        if step == 0 or self._drafts is None or self._drafts[0].shape != chosen.shape:
            self._drafts = torch.full_like(statistics.confidence, torch.inf), torch.zeros_like(statistics.token)
        confidence, returned = self._drafts
        confidence = torch.where(chosen, statistics.confidence, confidence)
        doubtful = ~left & (confidence < self.config.certain) & (returned < self.config.returns)
        room = (self.num_inference_steps - step - 1) * (chosen.shape[-1] // self.num_inference_steps)
        full = ~left.any(-1) & (doubtful.sum(-1) <= room)
        back: Tensor = doubtful & full[:, None]
        self._drafts = confidence, returned + back
        return back


@configured(BLOCK_CONFIG, factor=1.0)
class FactorScheduler(CommitScheduler):
    """Fast-dLLM's factor rule (arXiv:2505.22618): see :class:`fastsample.Factor`."""

    def rule(self, threshold: float) -> CommitRule:
        return Factor(self.config.factor)


@configured(BLOCK_CONFIG, budget=0.1)
class RiskScheduler(CommitScheduler):
    """As many tokens as keep the sum of 1 - confidence within a budget: see :class:`fastsample.Risk`."""

    def rule(self, threshold: float) -> CommitRule:
        return Risk(self.config.budget)


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
