"""Latent refinement decoding: undecided tokens as mixtures of embeddings (LRD, arXiv:2510.11052)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.decoding.statistics import nucleus, relative_entropy


@dataclass(frozen=True)
class LatentRefinement:
    """Both phases of LRD, within each block.

    A masked position is fed `(1 - a) e_mask + a sum_v p(v) e_v`, p the last forward's distribution over its `top_p`
    nucleus, renormalised, and a = `mixing` (1 - H / log V), H the entropy of the whole distribution.
    Phase 1 commits nothing; it ends when the mean KL(new || last) over the masked positions is below `refined`, or
    after `refine_steps` forwards. Phase 2 commits by the rule (in the paper :class:`Entropy`, one token a forward)
    and takes all that is left of the block when that KL is below `settled`.

    Raises ValueError for values out of range.
    """

    mixing: float = 0.15
    top_p: float = 0.9
    refined: float = 0.1
    settled: float = 0.1
    refine_steps: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing = {self.mixing}: give a number from 0 (the mask alone) to 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: give a number above 0, at most 1")
        for name in ("refined", "settled", "refine_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: give 0 (off) or more")

    def embed(self, logits: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        """Mixed embeddings [B, W, H] by `logits` [B, W, V], the table of embeddings [V, H] and the mask's [H]."""
        probabilities = logits.softmax(-1)
        entropy = torch.special.entr(probabilities).sum(-1, keepdim=True)
        weight = self.mixing * (1 - entropy / math.log(max(logits.shape[-1], 2)))
        likely = probabilities * nucleus(logits, self.top_p)
        likely = likely / likely.sum(-1, keepdim=True)
        mixed = (likely.to(table) @ table).to(weight)
        embedded: Tensor = ((1 - weight) * mask.to(weight) + weight * mixed).to(table)
        return embedded


def divergence(new: Tensor, old: Tensor, masked: Tensor) -> Tensor:
    """Mean over `masked` [B, W] of KL(new || old), in nats, of logits [B, W, V]; inf where nothing is masked."""
    terms = relative_entropy(new.log_softmax(-1), old.log_softmax(-1))
    count = masked.sum(-1)
    mean = torch.where(masked, terms, 0.0).sum(-1) / count
    return mean.clamp(min=0).masked_fill(count == 0, math.inf)  # below 0 by rounding alone


class Latents:
    """Where each row of a run stands in its refinement; all state on the device.

    `logits` [B, W, V] of the row's block at its last forward; `forwards` int64 [B] of the block so far; `committing`
    bool [B], phase 2.
    """

    def __init__(self, settings: LatentRefinement, rows: int, table: Tensor, mask: Tensor) -> None:
        """`table` [V, H] are the embeddings, `mask` [H] the mask token's."""
        self.settings, self._table, self._mask, device = settings, table, mask, table.device
        self.forwards = torch.zeros(rows, dtype=torch.int64, device=device)
        self.committing = torch.full((rows,), settings.refine_steps == 0, device=device)
        self.logits: Tensor | None = None
        self._refined = self.committing

    def embed(self, embeddings: Tensor, block: Tensor, undecided: Tensor) -> Tensor:
        """`embeddings` [B, L, H] with the mixtures at positions `block` [B, W] of them that are `undecided` [B, W].

        Unchanged for rows at the first forward of a block.
        """
        if self.logits is None:
            return embeddings
        index = block[..., None].expand(-1, -1, embeddings.shape[-1])
        mixed = self.settings.embed(self.logits, self._table, self._mask)
        soft = (undecided & (self.forwards > 0)[:, None])[..., None]
        return embeddings.scatter(1, index, torch.where(soft, mixed, embeddings.gather(1, index)))

    def observe(self, logits: Tensor, undecided: Tensor) -> Tensor:
        """Take a forward's logits [B, W, V]; bool [B]: rows that now take all that is left of their block."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        old = logits if self.logits is None else self.logits
        change = divergence(logits, old, undecided).masked_fill(self.forwards == 0, math.inf)
        settled = self.committing & (change < self.settings.settled)
        self.logits, self.forwards = logits, self.forwards + 1
        self._refined = (change < self.settings.refined) | (self.forwards >= self.settings.refine_steps)
        return settled

    def advance(self, moved: Tensor) -> None:
        """After a forward's commits: rows that `moved` (bool [B]) start on another block."""
        self.committing = torch.where(moved, self.settings.refine_steps == 0, self.committing | self._refined)
        self.forwards = self.forwards.masked_fill(moved, 0)

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self.forwards, self.committing = self.forwards[rows], self.committing[rows]
        self.logits = None if self.logits is None else self.logits[rows]
