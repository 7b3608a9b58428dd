"""What a commit rule is: from statistics of the tokens and the progress of each row to the positions to commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fastsample.decoding.statistics import Statistics


class Progress(NamedTuple):
    """Where each of B rows stands. Columns are response positions `first` .. `first + L - 1` of `length`."""

    step: Tensor
    """int64 [B]: steps of the schedule before this one, of the whole response."""
    steps: int
    """Of the schedule."""
    quota: Tensor
    """int64 [B]: tokens that the schedule commits now."""
    share: Tensor
    """float32 [B]: the part of the eligible positions that this is; 1 at a block's last step."""
    first: int
    length: int
    tokens: Tensor | None = None
    """int64 [B, L]: the text so far, the mask token where nothing is decided. Only for regions that ask for it."""
    readable: Tensor | None = None
    """bool [B, L]: where statistics are those of this forward, with a key-value cache; None is everywhere."""
    uniform: Tensor | None = None
    """[B, L] in (0, 1): only for rules that are `random`."""


class CommitRule(ABC):
    """Decides what is committed after a forward. Immutable, without state: one rule serves any number of runs.

    `reads`: "block" where the statistics of the current block are enough, else "response".
    `random`: whether `commit` needs `progress.uniform`.
    """

    reads: ClassVar[Literal["block", "response"]] = "block"

    @property
    def random(self) -> bool:
        return False

    @abstractmethod
    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        """Positions to commit, bool [B, L], among `masked`.

        `masked` are the undecided positions, `eligible` those of them in the row's current block. A rule commits at
        least one eligible position of a row that has any, or follows the quota. Rows do not see each other.
        """

    def check(self, length: int) -> None:  # noqa: B027
        """Raise ValueError where the rule does not fit a response of `length` tokens."""


def ranks(score: Tensor, eligible: Tensor) -> Tensor:
    """int64 [B, L]: 0 for the eligible position with the largest score, the earlier one first on ties."""
    order = score.masked_fill(~eligible, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


def best(score: Tensor, eligible: Tensor, count: Tensor | int) -> Tensor:
    """bool [B, L]: the `count` [B, 1] eligible positions with the largest scores; all where there are fewer."""
    return eligible & (ranks(score, eligible) < count)
