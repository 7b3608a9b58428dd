"""Philox4x32-10 in torch: the stream of the Triton kernels, bit for bit in its integers.

A draw depends on a 64-bit seed and four 32-bit counter words, and on nothing else: not on the batch, the block size
or the device. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEYS = (0x9E3779B9, 0xBB67AE85)


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words in [0, 2^32) for each counter; int64 tensors of one shape, words taken modulo 2^32."""
    c0, c1, c2, c3 = (word & WORD for word in counter)
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(10):
        # int64 products wrap: their lower 64 bits are those of the unsigned product
        a, b = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((b >> 32) & WORD) ^ c1 ^ k0, b & WORD, ((a >> 32) & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + _KEYS[0]) & WORD, (k1 + _KEYS[1]) & WORD
    return c0, c1, c2, c3


def words(seed: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of counters 0 .. ceil(size / 4) - 1 for each row: `seed`, c1, c2, c3 [R] -> four [R, groups]."""
    groups = torch.arange((size + 3) // 4, device=seed.device).expand(len(seed), -1)
    w1, w2, w3 = (word[:, None].expand_as(groups) for word in (c1, c2, c3))
    return philox(seed[:, None], (groups, w1, w2, w3))


def uniform(word: Tensor) -> Tensor:
    """float32 in [2^-33, 1 - 2^-24], small ones to full relative precision."""
    return ((word.float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)


def gumbels(seed: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, size: int) -> Tensor:
    """Standard Gumbel float32 [R, size], exact in the upper tail, which decides an arg-max, up to 22.9."""
    u = torch.stack([uniform(word) for word in words(seed, c1, c2, c3, size)], dim=-1).flatten(1)[:, :size]
    # -log(1 - u): by its series where 1 - u would lose digits
    exponential = torch.where(u < 2.0**-8, u * (1 + u * (0.5 + u * (1 / 3))), -torch.log(1 - u))
    return -torch.log(exponential)
