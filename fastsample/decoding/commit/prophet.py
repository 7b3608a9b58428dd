"""Prophet: the whole answer at once, as soon as the model is sure of it (arXiv:2508.19982)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastsample.decoding.commit.rule import CommitRule, Progress, refuse_nested
from fastsample.decoding.commit.scheduled import LowConfidence
from fastsample.decoding.statistics import Statistics

Region = tuple[int, int] | Callable[[Tensor, Tensor], Tensor] | None
"""Where Prophet looks: None, the masked positions; (start, length) of the response; or a function of the text with
its candidates, int64 [B, L], and of `masked`, to bool [B, L]."""


@dataclass(frozen=True)
class Prophet(CommitRule):
    """Commits every masked token of the response once the mean logit gap of a region is large enough, else `base`'s.

    Gap: largest logit minus the second largest. Enough is `thresholds[i]` in phase i, which ends where progress
    reaches `phases[i]` (arXiv:2508.19982; there, GSM8K and GPQA 8, 5, 3.5; HumanEval and MBPP 7.5, 5, 4.5).
    progress: "paper" is step / steps from 0, "code" the same from 1 (the authors' code), "tokens" the share of the
        response that is decided: for a base that commits more tokens than the schedule.
    region: None for all masked positions; a span of the response, decided or not, such as the answer's; a function,
        such as :class:`After`. A text is only as sure as its region: one that is the answer alone says nothing of the
        rest, which is committed with it. Where none of the region can be read, nothing is committed early.

    Raises ValueError for thresholds that rise, or values out of range.
    """

    thresholds: tuple[float, ...] = (7.5, 5.0, 2.5)
    region: Region = None
    progress: Literal["code", "paper", "tokens"] = "code"
    base: CommitRule = field(default_factory=LowConfidence)
    phases: tuple[float, ...] = (0.33, 0.67)

    reads: ClassVar[Literal["block", "response"]] = "response"

    def __post_init__(self) -> None:
        refuse_nested(self.base, "Prophet")
        values = tuple(self.thresholds)
        if len(values) != len(self.phases) + 1:
            raise ValueError(f"thresholds = {values}: give {len(self.phases) + 1}, one a phase")
        if any(math.isnan(value) for value in values) or list(values) != sorted(values, reverse=True):
            raise ValueError(f"thresholds = {values}: they must not rise from phase to phase")
        if list(self.phases) != sorted(self.phases):
            raise ValueError(f"phases = {self.phases}: they must not fall")
        if self.progress not in ("code", "paper", "tokens"):
            raise ValueError(f'progress = {self.progress!r}: give "code", "paper" or "tokens"')
        if not (self.region is None or callable(self.region) or _is_span(self.region)):
            raise ValueError(f"region = {self.region}: give (start, length), from 0 and at least 1 long")

    @property
    def needs(self) -> frozenset[str]:
        return self.base.needs | {"gap"}

    @property
    def random(self) -> bool:
        return self.base.random

    def check(self, length: int) -> None:
        self.base.check(length)
        if isinstance(self.region, tuple) and sum(self.region) > length:
            raise ValueError(
                f"region = {self.region} ends outside the response of {length} tokens: move or shorten it"
            )

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        ready = self.exits(statistics, masked, progress)
        return torch.where(ready[:, None], masked, self.base.commit(statistics, masked, eligible, progress))

    def exits(self, statistics: Statistics, masked: Tensor, progress: Progress) -> Tensor:
        """bool [B]: whether a row is decided at once."""
        region = self._region(statistics, masked, progress)
        if progress.readable is not None:
            region = region & progress.readable
        count = region.sum(-1)
        mean = torch.where(region, statistics.gap, 0).sum(-1) / count
        made, ends = self._made(masked, progress)
        enough = torch.full_like(mean, self.thresholds[-1])
        for end, threshold in zip(reversed(ends), reversed(self.thresholds[:-1]), strict=True):
            enough = enough.masked_fill(made < end, threshold)
        return (count > 0) & (mean >= enough)

    def _made(self, masked: Tensor, progress: Progress) -> tuple[Tensor, list[int]]:
        """int64 [B]: the steps made or tokens decided, and the number of them at which each phase ends.

        The numbers are found on the host, so that rows are compared in integers: not every device has float64.
        """
        if self.progress == "tokens":
            total, made = progress.length, progress.length - masked.sum(-1)
            return made, [_first(total, end, lambda count: 1 - (total - count) / total) for end in self.phases]
        steps, made = progress.steps, progress.step + (self.progress == "code")
        return made, [_first(steps, end, lambda count: count / steps) for end in self.phases]

    def _region(self, statistics: Statistics, masked: Tensor, progress: Progress) -> Tensor:
        if self.region is None:
            return masked
        if isinstance(self.region, tuple):
            start, length = self.region
            position = torch.arange(progress.first, progress.first + masked.shape[-1], device=masked.device)
            return ((position >= start) & (position < start + length)).expand_as(masked)
        if progress.tokens is None:
            raise ValueError("progress.tokens = None: a region that is a function needs the text so far")
        return self.region(torch.where(masked, statistics.token, progress.tokens), masked)


def _first(total: int, end: float, share: Callable[[int], float]) -> int:
    """The least count up to `total` whose share reaches `end`; one more where none does."""
    return bisect_left(range(total + 1), end, key=share)


def _is_span(region: object) -> bool:
    return isinstance(region, tuple) and len(region) == 2 and region[0] >= 0 and region[1] >= 1


@dataclass(frozen=True)
class After:
    """Region of the `length` positions after the first `separator` (token ids) in the text with its candidates.

    Empty, so that nothing is committed early, while the separator does not appear.
    """

    separator: Sequence[int]
    length: int

    def __post_init__(self) -> None:
        if not self.separator or self.length < 1:
            raise ValueError(
                f"separator = {tuple(self.separator)}, length = {self.length}: give at least one token and 1"
            )

    def __call__(self, text: Tensor, masked: Tensor) -> Tensor:
        here = torch.ones_like(masked)
        for back, token in enumerate(reversed(self.separator)):
            here = here & torch.nn.functional.pad(text == token, (back, 0))[:, : text.shape[-1]]
        passed = torch.nn.functional.pad(here.cumsum(-1) > 0, (1, 0))[:, :-1]
        return passed & (passed.cumsum(-1) <= self.length)


def anchor(start: int, tokens: Sequence[int]) -> dict[int, int]:
    """Constraints that write `tokens` from response position `start` on, such as "The answer is" before its place.

    For `constraints` of :func:`fastsample.decode_masked`.
    """
    return {start + offset: token for offset, token in enumerate(tokens)}
