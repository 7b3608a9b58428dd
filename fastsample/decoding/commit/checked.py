"""Rules that commit drafts and check them: what later context no longer supports goes back to a mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastsample.decoding.commit.parallel import Threshold
from fastsample.decoding.commit.rule import (
    Checking,
    CommitRule,
    Drafts,
    Progress,
    best,
    check_probability,
    ranks,
    refuse_nested,
)
from fastsample.decoding.statistics import Statistics


@dataclass(frozen=True)
class Checked(Checking):
    """Draft and check: commits by `base`; what was committed below `certain` is looked at in every later forward.

    A draft whose token then has less than the probability `support` goes back to a mask, at most `returns` times.
    A text ends as soon as it is full and nothing goes back: the last commits are not checked.
    Only the few doubtful tokens are evaluated again, so that a forward costs a few percent more; see
    :class:`fastsample.decoding.commit.rule.Checking` for `form`.

    Raises ValueError for values out of range.
    """

    certain: float = 0.99
    support: float = 0.9
    returns: int = 2  # type: ignore[assignment]  # a property of the class above
    form: Literal["shadows", "rows"] = "shadows"
    base: CommitRule = field(default_factory=lambda: Threshold(0.9))

    def __post_init__(self) -> None:
        check_probability("certain", self.certain)
        check_probability("support", self.support)
        if self.returns < 0:
            raise ValueError(f"returns = {self.returns}: give 0 (no check) or more")
        _check_form(self.form)
        refuse_nested(self.base, "Checked")

    @property
    def reads(self) -> Literal["block", "response"]:  # type: ignore[override]
        return self.base.reads

    @property
    def needs(self) -> frozenset[str]:
        return self.base.needs

    @property
    def random(self) -> bool:
        return self.base.random

    def check(self, length: int) -> None:
        self.base.check(length)

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return self.base.commit(statistics, masked, eligible, progress)

    def looked_at(self, drafts: Drafts) -> Tensor:
        return drafts.draft & (drafts.confidence < self.certain) & (drafts.returned < self.returns)

    def revoked(self, drafts: Drafts, support: Tensor, chosen: Tensor) -> Tensor:
        return self.looked_at(drafts) & (support < self.support)


@dataclass(frozen=True)
class WINO(Checking):
    """Wide in, narrow out (arXiv:2507.18578): drafts above `threshold`, revoked below `threshold_back`.

    Of the block's masked tokens at most 7 in 10 are drafted at once, within 5 and 20. All of the block has shadows,
    which see each other. Drafts are only revoked by a forward that commits two or more, and always fewer than the
    last one committed.
    Raises ValueError for values out of range.
    """

    threshold: float = 0.6
    threshold_back: float = 0.9
    form: Literal["shadows", "rows"] = "shadows"

    mutual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_probability("threshold", self.threshold)
        check_probability("threshold_back", self.threshold_back)
        _check_form(self.form)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        most = (eligible.sum(-1) * 7 // 10).clamp(5, 20)[:, None]
        sure = eligible & (statistics.confidence > self.threshold)
        return best(statistics.confidence, sure, most) | best(statistics.confidence, eligible, 1)

    def looked_at(self, drafts: Drafts) -> Tensor:
        return drafts.block if self.form == "shadows" else drafts.draft

    def revoked(self, drafts: Drafts, support: Tensor, chosen: Tensor) -> Tensor:
        low = drafts.draft & (support < self.threshold_back)
        last = (drafts.draft & (drafts.age == 1)).sum(-1)
        most = torch.where(low.sum(-1) >= last, last - 1, low.shape[-1])
        wide = chosen.sum(-1) > 1
        return low & (ranks(-support, low) < most[:, None]) & wide[:, None]


def _check_form(form: str) -> None:
    if form not in ("shadows", "rows"):
        raise ValueError(f'form = {form!r}: give "shadows" or "rows"')
