"""What commit rules know of logits: a candidate token at each position, and how sure the model is of it.

The one door of decoding to the kernels. float16, bfloat16 and float32 logits are read in float32, in one fused pass
on a GPU; float64 logits by the torch reference, in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from fastsample_kernels import Gumbel, TokenStatistics, token_statistics
from fastsample_kernels.counter_random import philox, uniform
from fastsample_kernels.token_statistics import token_statistics_reference
from torch import Tensor


class Statistics(NamedTuple):
    """Of logits [B, L, V], each value [B, L]; float32, or float64 for float64 logits."""

    token: Tensor
    """int64: the candidate, the arg-max (the lowest index on ties) or a draw."""
    confidence: Tensor
    """Probability of the candidate."""
    margin: Tensor
    """Largest probability minus the second largest."""
    entropy: Tensor
    """In nats."""
    gap: Tensor
    """Largest logit minus the second largest, of the logits as given."""


@dataclass(frozen=True)
class Sampling:
    """How candidates are drawn: from softmax(logits / `temperature`), 0 being the arg-max.

    top_k, top_p: only the k likeliest tokens, of these only the likeliest up to the one that takes their probability
        beyond p.
    scaled: confidence, margin and entropy are those of the distribution that is drawn from (Dream, LLaDA 2); else
        those of softmax(logits) (LLaDA).

    Raises ValueError for values out of range.
    """

    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    scaled: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature = {self.temperature}: give 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}: give a number above 0, at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k}: give 1 or more")


GREEDY = Sampling()


def statistics_of(
    logits: Tensor, sampling: Sampling = GREEDY, *, seed: Tensor | None = None, draw: Tensor | None = None
) -> Statistics:
    """Statistics of `logits` [B, L, V], in one pass; in two where top_k or top_p leave tokens out.

    At a temperature above 0, `seed` int64 [B, L] and `draw` int64 [B] or a scalar fix the Gumbel noise: a candidate
    depends on its own seed and draw alone, so neither on the batch nor on which positions are read.
    Raises ValueError where these are missing.
    """
    gumbel = None
    if sampling.temperature > 0:
        if seed is None or draw is None:
            raise ValueError(f"temperature = {sampling.temperature} without seed and draw: give both")
        gumbel = Gumbel(_on_device(sampling.temperature, logits), seed, draw.reshape(-1, 1))
    divisor = sampling.temperature if sampling.scaled and sampling.temperature > 0 else 1.0
    kept = _filtered(logits, sampling)
    drawn = _read(logits if kept is None else kept, divisor, gumbel)
    given = drawn if kept is None else _read(logits, 1.0, None)
    described = drawn if sampling.scaled else given
    token, logit = (drawn.token, drawn.top1) if gumbel is None else (drawn.sample, drawn.sample_logit)
    assert token is not None
    assert logit is not None

    def probability(value: Tensor) -> Tensor:
        return (value / divisor - described.logsumexp).exp()

    margin = probability(described.top1) - probability(described.top2)
    return Statistics(token, probability(logit), margin, described.entropy, given.top1 - given.top2)


def uniforms(seed: Tensor, draw: Tensor) -> Tensor:
    """float32 [B, L] in (0, 1) by `seed` and `draw` as in :func:`statistics_of`, independent of its noise."""
    zero = torch.zeros_like(seed)
    word, *_ = philox(seed, (zero, zero + 1, draw.reshape(-1, 1).expand_as(seed), zero))
    return uniform(word)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """bool, as `logits` [..., V]: the likeliest tokens up to the one that takes their probability beyond `top_p`."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    before = torch.nn.functional.pad(probabilities.cumsum(-1)[..., :-1], (1, 0))
    return torch.empty_like(logits, dtype=torch.bool).scatter_(-1, order, before <= top_p)


def _read(logits: Tensor, temperature: float, gumbel: Gumbel | None) -> TokenStatistics:
    heat = None if temperature == 1 else _on_device(temperature, logits)
    if logits.dtype != torch.float64:
        return token_statistics(logits, temperature=heat, gumbel=gumbel)
    values, indices = token_statistics_reference(logits, heat, *(gumbel or (None,) * 3))
    top1, top2, logsumexp, entropy, *sample_logit = values.unbind(0)
    token, *sample = indices.unbind(0)
    return TokenStatistics(token, top1, top2, logsumexp, entropy, *sample, *sample_logit)


def _on_device(value: float, logits: Tensor) -> Tensor:
    return torch.full((1,), value, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))


def _filtered(logits: Tensor, sampling: Sampling) -> Tensor | None:
    """The logits with -inf for tokens that top_k and top_p leave out; None where nothing is left out."""
    kept = None
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        kept = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        kept = logits if kept is None else kept
        kept = kept.masked_fill(~nucleus(kept / (sampling.temperature or 1.0), sampling.top_p), -math.inf)
    return kept
