"""Rules that go by several forwards: what has stayed as it was, or was predicted again and again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastsample.decoding.commit.parallel import Threshold
from fastsample.decoding.commit.rule import Memory, Progress, Remembering, best, check_probability
from fastsample.decoding.statistics import Statistics, relative_entropy


@dataclass(frozen=True)
class KLASS(Remembering):
    """The tokens above `confidence` whose distribution is stable; the schedule's quota where there are none.

    Stable: the KL divergence from the distribution of the forward before was below `kl` in each of the last
    `history` forwards, and the block has had as many (arXiv:2511.05664).
    Raises ValueError for values out of range.
    """

    confidence: float = 0.9
    kl: float = 0.01
    history: int = 2

    reads: ClassVar[Literal["block", "response"]] = "response"

    def __post_init__(self) -> None:
        check_probability("confidence", self.confidence)
        if not self.kl > 0:
            raise ValueError(f"kl = {self.kl}: give a number above 0, in nats")
        if self.history < 1:
            raise ValueError(f"history = {self.history}: give 1 or more forwards")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def begin(self, logits: Tensor, length: int) -> Memory:
        """Log-probabilities of the last forward (none: -inf, from which everything is far) and stable forwards."""
        shape = (len(logits), length)
        wide = torch.promote_types(logits.dtype, torch.float32)
        last = logits.new_full((*shape, logits.shape[-1]), -math.inf, dtype=wide)
        return last, torch.zeros(shape, dtype=torch.int64, device=logits.device)

    def remember(
        self, logits: Tensor, memory: Memory, eligible: Tensor, excluded: int | None
    ) -> tuple[Tensor, Memory]:
        last, stable = memory
        new = logits.to(last.dtype, copy=True)
        if excluded is not None:
            new[..., excluded] = -math.inf
        new = new.log_softmax(-1)
        near = relative_entropy(new, last) < self.kl
        return logits, (new, torch.where(near, stable + 1, 0))

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        _, stable = progress.memory
        if progress.block_step is None:
            raise ValueError(
                "progress.block_step = None: KLASS counts the forwards of a block, decode by decode_masked"
            )
        ready = eligible & (statistics.confidence > self.confidence) & (stable >= self.history)
        ready = ready & (progress.block_step >= self.history - 1)[:, None]
        topped = best(statistics.confidence, eligible, progress.quota[:, None])
        return torch.where(ready.any(-1, keepdim=True), ready, topped)


@dataclass(frozen=True)
class Credit(Remembering):
    """:class:`Threshold` on logits to which tokens predicted before are added (dInfer, arXiv:2510.06133).

    In each forward of a block the credit of every token falls to `decay` of itself, and that of a masked position's
    likeliest token, of probability p, grows by p^`boost`. Read are the logits + `weight` log(1 + credit).
    Raises ValueError for values out of range.
    """

    confidence: float = 0.9
    weight: float = 0.7
    boost: float = 0.2
    decay: float = 0.8

    def __post_init__(self) -> None:
        check_probability("confidence", self.confidence)
        for name in ("weight", "boost"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}: give 0 or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay = {self.decay}: give a number from 0 to 1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"confidence"})

    def begin(self, logits: Tensor, length: int) -> Memory:
        """The credit of each token at each position."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        return (logits.new_zeros(len(logits), length, logits.shape[-1], dtype=wide),)

    def remember(
        self, logits: Tensor, memory: Memory, eligible: Tensor, excluded: int | None
    ) -> tuple[Tensor, Memory]:
        (credit,) = memory
        wide = logits.to(credit.dtype, copy=True)
        if excluded is not None:
            wide[..., excluded] = -math.inf
        top, token = wide.softmax(-1).max(-1)
        gained = torch.where(eligible, top**self.boost, 0.0)
        credit = (credit * self.decay).scatter_add(-1, token[..., None], gained[..., None])
        return wide + self.weight * credit.log1p(), (credit,)

    def commit(self, statistics: Statistics, masked: Tensor, eligible: Tensor, progress: Progress) -> Tensor:
        return Threshold(self.confidence).commit(statistics, masked, eligible, progress)
