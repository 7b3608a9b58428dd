"""What a decoding run cost, and when each token was committed."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastsample.sampling.ledger import Ledger


@dataclass
class DecodingLedger(Ledger):
    """A :class:`~fastsample.Ledger` whose images are the sequences of a batch.

    `committed_at` int64 [B, gen_length]: the forward, from 1, at which each token was committed; 0 for constraints
    and for what follows the end token. Forwards in which a rule such as PUNT tries texts out have no number here.
    `row_forwards`: forwards of each row; a guided one counts once here and twice in `model_evaluations` and
    `tokens_per_forward`. `positions`: tokens that were evaluated, the prompt's, padding and shadows among them.
    `confidence` float32 [B, gen_length]: the probability of each token at its commit, or where a checking rule looked
    at it last; 1 where there was no commit.
    """

    committed_at: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.int64))
    row_forwards: list[int] = field(default_factory=list)
    positions: int = 0
    confidence: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    @property
    def tokens(self) -> int:
        """Tokens committed, all rows together."""
        return int((self.committed_at > 0).sum())

    @property
    def risk(self) -> Tensor:
        """float32 [B]: the sum of 1 - confidence over a row's commits: the model's own doubt."""
        return (1 - self.confidence).sum(-1)

    @property
    def tokens_per_forward(self) -> float:
        """Tokens committed per model evaluation of one row."""
        return self.tokens / max(self.rows, 1)

    @property
    def tokens_per_second(self) -> float:
        """Tokens committed per second, all rows together."""
        return self.tokens / self.seconds if self.seconds else 0.0
