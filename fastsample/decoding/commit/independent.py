"""PUNT: the tokens at once that do not depend on each other, found by trying some of them out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.decoding.commit.rule import Probing, Progress, ranks
from fastsample.decoding.statistics import Statistics, relative_entropy


@dataclass(frozen=True)
class PUNT(Probing):
    """All eligible tokens but those whose distribution changes when surer ones are filled in (arXiv:2510.21961).

    The n eligible positions of a row are numbered from 0 by falling confidence. For each binary digit of the numbers,
    from the highest: the tokens left with a 0 there are filled in together, and those with a 1 whose distribution
    then lies farther than `epsilon` (KL from what it was, in nats) are dropped. A pair that is left was told apart by
    one of the digits. It takes ceil(log2 n) further forwards a step.
    Raises ValueError for a negative epsilon.
    """

    epsilon: float = 0.01

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon = {self.epsilon}: give 0 or more nats")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        probe = progress.probe
        if probe is None or progress.tokens is None:
            raise ValueError("progress.probe = None: PUNT makes forwards of its own, decode by decode_masked")
        number, kept = ranks(statistics.confidence, eligible), eligible
        digits = [max(count - 1, 0).bit_length() for count in probe.counts]
        before = probe.logits.log_softmax(-1)
        for turn in range(max(digits, default=0)):
            rows = [row for row, own in enumerate(digits) if own > turn]
            index = torch.tensor(rows).to(number.device, non_blocking=True)
            digit = torch.tensor([digits[row] - 1 - turn for row in rows]).to(number.device, non_blocking=True)
            one = (number[index] >> digit[:, None]) & 1 == 1
            mine = kept[index]
            text = torch.where(mine & ~one, statistics.token[index], progress.tokens[index])
            after = probe(text, rows).log_softmax(-1)
            moved = relative_entropy(after, before[index]) > self.epsilon
            kept = kept.index_copy(0, index, mine & ~(one & moved))
        return kept
