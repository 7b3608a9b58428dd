"""Drafts and the forwards that look at them again: the state of a checking rule in a run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastsample.decoding.commit import Checking, Drafts


class Shadows(NamedTuple):
    """Mask tokens behind a row of tokens, each at the position of one of them."""

    at: Tensor
    """int64 [B, S]: positions in the sequence."""
    mutual: bool
    """Whether they see each other, or each only itself."""


class Checks:
    """Where the drafts of each row stand, [A, G]; and what the next forward looks at.

    `counts`: of each row, how many positions are looked at next, on the host.
    """

    def __init__(self, rule: Checking, response: Tensor) -> None:
        self.rule = rule
        self.counts: list[int] = [0] * len(response)
        self._confidence = torch.zeros(response.shape, device=response.device)
        self._returned = torch.zeros_like(response)
        self._next = torch.zeros_like(response, dtype=torch.bool)

    def shadows(self, prompt: int) -> Shadows | None:
        """Those of the next forward, as many a row as the one with the most; None where there are none."""
        count = max(self.counts, default=0)
        return Shadows(prompt + self._places(count), self.rule.mutual) if count else None

    def hidden(self, tokens: Tensor, prompt: int, mask_token_id: int) -> tuple[Tensor, Tensor] | None:
        """Rows [R] with something to look at, and their tokens [R, L] with that masked; None where there are none."""
        rows = [row for row, count in enumerate(self.counts) if count]
        if not rows:
            return None
        index = torch.tensor(rows).to(tokens.device, non_blocking=True)
        text = tokens[index]
        text[:, prompt:].masked_fill_(self._next[index], mask_token_id)
        return index, text

    def support_of_shadows(self, probability: Tensor) -> Tensor:
        """[A, G] from the probabilities [A, S] of the tokens at :meth:`shadows`; inf where nothing was looked at."""
        support = torch.full(self._next.shape, torch.inf, dtype=probability.dtype, device=probability.device)
        support = support.scatter(1, self._places(probability.shape[1]), probability)
        return support.masked_fill(~self._next, torch.inf)

    def support_of_rows(self, index: Tensor, probability: Tensor, first: int) -> Tensor:
        """[A, G] from the probabilities [R, W] of the tokens at positions from `first` of the rows `index`."""
        support = torch.full(self._next.shape, torch.inf, dtype=probability.dtype, device=probability.device)
        support[:, first : first + probability.shape[1]].index_copy_(0, index, probability)
        return support.masked_fill(~self._next, torch.inf)

    def revoked(
        self, support: Tensor | None, chosen: Tensor, committed_at: Tensor, forward: int, own: Tensor
    ) -> Tensor:
        """bool [A, G]: drafts that go back to masks, by this forward's `support` and what it commits.

        `own` are the positions of each row's block.
        """
        if support is None:
            return torch.zeros_like(chosen)
        back = self.rule.revoked(self._drafts(committed_at, forward, own), support, chosen)
        self._returned += back
        return back

    def note(self, chosen: Tensor, confidence: Tensor, columns: slice) -> None:
        """Keep the confidence at which tokens are committed, bool and float [A, columns]."""
        self._confidence = self._confidence.to(torch.promote_types(self._confidence.dtype, confidence.dtype))
        kept = self._confidence[:, columns]
        kept.copy_(torch.where(chosen, confidence, kept))

    def look(self, committed_at: Tensor, forward: int, own: Tensor) -> Tensor:
        """Settle what the next forward looks at; int64 [A]: how many positions of each row."""
        self._next = self.rule.looked_at(self._drafts(committed_at, forward + 1, own))
        return self._next.sum(-1)

    def take(self, rows: Tensor, kept: list[int]) -> None:
        """Keep only these rows of the batch."""
        self._confidence, self._returned, self._next = (
            each[rows] for each in (self._confidence, self._returned, self._next)
        )
        self.counts = [self.counts[row] for row in kept]

    def _places(self, count: int) -> Tensor:
        """int64 [A, count]: the positions that are looked at, in order, then others."""
        return self._next.long().argsort(dim=-1, descending=True, stable=True)[:, :count]

    def _drafts(self, committed_at: Tensor, forward: int, own: Tensor) -> Drafts:
        draft = own & (committed_at > 0)
        return Drafts(draft, own, self._confidence, self._returned, forward - committed_at)
