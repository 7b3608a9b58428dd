"""What a commit rule is: from statistics of the tokens and the progress of each row to the positions to commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fastsample.decoding.statistics import EVERYTHING, Statistics

Memory = tuple[Tensor, ...]
"""What a rule keeps of earlier forwards: tensors [B, L, ..], a column a position."""


class Probe(Protocol):
    """Further forwards within a step, for :class:`Probing` rules. The mask token has a logit of -inf."""

    logits: Tensor
    """[B, L, V]: of this step's own forward."""
    counts: list[int]
    """Of each row: its eligible positions."""

    def __call__(self, tokens: Tensor, rows: list[int]) -> Tensor:
        """Logits [R, L, V] of the rows `rows`, were their text `tokens` [R, L]."""
        ...


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
    block_step: Tensor | None = None
    """int64 [B]: forwards of the row's block before this one."""
    memory: Memory = ()
    """What a :class:`Remembering` rule has just returned."""
    probe: Probe | None = None
    """Only for :class:`Probing` rules."""


class CommitRule(ABC):
    """Decides what is committed after a forward. Immutable, without state: one rule serves any number of runs.

    `reads`: "block" where the statistics of the current block are enough, else "response".
    `needs`: the fields of its statistics that it reads beside token and confidence; no others are computed.
    `random`: whether `commit` needs `progress.uniform`.
    """

    reads: ClassVar[Literal["block", "response"]] = "block"

    @property
    def needs(self) -> frozenset[str]:
        return EVERYTHING

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


class Remembering(CommitRule):
    """A rule that goes by earlier forwards too. The engine keeps its memory; the rule itself stays without state."""

    @abstractmethod
    def begin(self, logits: Tensor, length: int) -> Memory:
        """The memory of B rows of `length` positions before the first forward, whose logits [B, .., V] these are."""

    @abstractmethod
    def remember(
        self, logits: Tensor, memory: Memory, eligible: Tensor, excluded: int | None
    ) -> tuple[Tensor, Memory]:
        """The logits [B, L, V] to read in place of a forward's, and the memory of their columns after it.

        `excluded`: a token that is never predicted. The arguments are not changed.
        """


class Probing(CommitRule):
    """A rule that tries texts out: it makes forwards of its own by `progress.probe`."""


class Drafts(NamedTuple):
    """What a :class:`Checking` rule knows of a response, each [B, G]."""

    draft: Tensor
    """bool: committed by the rule, in the row's current block."""
    block: Tensor
    """bool: the positions of that block."""
    confidence: Tensor
    """At its commit."""
    returned: Tensor
    """int64: how often it has gone back to a mask."""
    age: Tensor
    """int64: forwards since its commit, 1 in the next one."""


class Checking(CommitRule):
    """A rule whose commits are drafts: later forwards look at them again as if they were masked.

    form: "shadows", further mask tokens in the same row, each at the position of a draft, which see all but it and
    are seen by nothing (arXiv:2507.18578); "rows", for models without 4-D attention masks and position ids: a second
    row in the batch with these drafts masked together.
    """

    form: Literal["shadows", "rows"] = "shadows"
    mutual: ClassVar[bool] = False
    """Whether shadows see each other."""

    @property
    def returns(self) -> int:
        """How often a position can go back to a mask; bounds the length of a run."""
        return 0

    @abstractmethod
    def looked_at(self, drafts: Drafts) -> Tensor:
        """bool [B, G]: positions that the next forward looks at."""

    @abstractmethod
    def revoked(self, drafts: Drafts, support: Tensor, chosen: Tensor) -> Tensor:
        """bool [B, G]: drafts that go back to masks.

        `support` [B, G] is the probability of the token at a draft that was looked at, inf elsewhere; `chosen`
        bool [B, G] is what this forward commits.
        """


def refuse_nested(rule: CommitRule, name: str) -> None:
    """Raise ValueError for a rule whose memory, probes or checks would be lost inside another one, `name`."""
    if isinstance(rule, (Remembering, Probing, Checking)):
        raise ValueError(f"base = {type(rule).__name__} cannot stand inside {name}: give a rule of one forward")


def check_probability(name: str, value: float) -> None:
    """Raise ValueError for a number that is no probability above 0."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} = {value}: give a probability above 0, at most 1")


def ranks(score: Tensor, eligible: Tensor) -> Tensor:
    """int64 [B, L]: 0 for the eligible position with the largest score, the earlier one first on ties."""
    order = score.masked_fill(~eligible, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    place = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, place)


def best(score: Tensor, eligible: Tensor, count: Tensor | int) -> Tensor:
    """bool [B, L]: the `count` [B, 1] eligible positions with the largest scores; all where there are fewer."""
    return eligible & (ranks(score, eligible) < count)
