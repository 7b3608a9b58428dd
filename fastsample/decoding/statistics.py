"""What commit rules know of logits: a candidate token at each position, and how sure the model is of it.

The one door of decoding to the kernels. float16, bfloat16 and float32 logits are read in float32, in one fused pass
on a GPU; elsewhere by torch, which computes no more than the rule needs. float64 logits are read in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from fastsample_kernels import Gumbel, token_statistics
from fastsample_kernels.counter_random import gumbels, philox, rows_per_seed, uniform
from fastsample_kernels.dispatch import choose_backend
from torch import Tensor

PIECE = 2**18
"""Logits that are read at once on a CPU: a megabyte of float32."""


class Statistics(NamedTuple):
    """Of logits [B, L, V], each value [B, L]; float32, or float64 for float64 logits.

    A field that was not asked for (`needs` of :func:`statistics_of`) is None.
    """

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


EVERYTHING = frozenset(Statistics._fields)
_Fields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class _Reading(NamedTuple):
    """What one pass over logits x finds: token, its logit, log sum exp((x - top1) / temperature), top1 - top2, ..."""

    token: Tensor
    top1: Tensor
    log_sum: Tensor
    gap: Tensor | None = None
    entropy: Tensor | None = None
    sample: Tensor | None = None
    sample_logit: Tensor | None = None


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
    logits: Tensor,
    sampling: Sampling = GREEDY,
    *,
    seed: Tensor | None = None,
    draw: Tensor | None = None,
    needs: Collection[str] = EVERYTHING,
    excluded: int | None = None,
) -> Statistics:
    """Statistics of `logits` [B, L, V], in one pass; in two where top_k or top_p leave tokens out.

    At a temperature above 0, `seed` int64 [B, L] and `draw` int64 [B] or a scalar fix the Gumbel noise: a candidate
    depends on its own seed and draw alone, so neither on the batch nor on which positions are read.
    needs: the fields to compute beside token and confidence. excluded: a token that is never predicted (the mask).
    Raises ValueError where seed or draw is missing.
    """
    gumbel = None
    if sampling.temperature > 0:
        if seed is None or draw is None:
            raise ValueError(f"temperature = {sampling.temperature} without seed and draw: give both")
        gumbel = Gumbel(_on_device(sampling.temperature, logits), seed, draw.reshape(-1, 1))
    divisor = sampling.temperature if sampling.scaled and sampling.temperature > 0 else 1.0
    more = frozenset(needs) & {"margin", "entropy", "gap"}
    kept = _filtered(logits, sampling, excluded)
    drawn = _read(logits if kept is None else kept, divisor, gumbel, more, excluded)
    given = drawn if kept is None else _read(logits, 1.0, None, more, excluded)
    described = drawn if sampling.scaled else given
    token, logit = (drawn.token, drawn.top1) if gumbel is None else (drawn.sample, drawn.sample_logit)
    assert token is not None
    assert logit is not None

    confidence = ((logit - described.top1) / divisor - described.log_sum).exp()
    margin = None
    if "margin" in more and described.gap is not None:
        margin = (-described.log_sum).exp() * -(-described.gap / divisor).expm1()
    return Statistics(*cast(_Fields, (token, confidence, margin, described.entropy, given.gap)))


def probability_of(logits: Tensor, token: Tensor, *, excluded: int | None = None) -> Tensor:
    """softmax(logits) [B, L, V] at `token` [B, L], the `excluded` one left out; [B, L]."""
    reading = _read(logits, 1.0, None, frozenset(), excluded)
    own = logits.gather(-1, token[..., None])[..., 0].to(reading.top1)
    return (own - reading.top1 - reading.log_sum).exp()


def relative_entropy(log_new: Tensor, log_old: Tensor) -> Tensor:
    """KL(new || old) in nats over the last dimension of log-probabilities; what the new one lacks adds nothing."""
    new = log_new.exp()
    return torch.where(new == 0, 0.0, new * (log_new - log_old)).sum(-1)


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


def _read(
    logits: Tensor, temperature: float, gumbel: Gumbel | None, needs: frozenset[str], excluded: int | None
) -> _Reading:
    if logits.dtype == torch.float64 or choose_backend(logits.device) == "torch":
        return _read_by_torch(logits, temperature, gumbel, needs, excluded)
    heat = None if temperature == 1 else _on_device(temperature, logits)
    found = token_statistics(logits, temperature=heat, gumbel=gumbel, excluded=excluded)
    log_sum, gap = found.logsumexp - found.top1 / temperature, found.top1 - found.top2
    return _Reading(found.token, found.top1, log_sum, gap, found.entropy, found.sample, found.sample_logit)


def _read_by_torch(
    logits: Tensor, temperature: float, gumbel: Gumbel | None, needs: frozenset[str], excluded: int | None
) -> _Reading:
    """Piece by piece, so that a CPU finds in its cache what the next operation reads."""
    noise = None if gumbel is None else _noise(gumbel, logits)
    whole: list[Tensor | None] | None = None
    for rows, columns in _pieces(logits):
        part = _read_piece(logits[rows, columns], temperature, needs, excluded, noise and noise(rows, columns))
        if part[0].shape == logits.shape[:-1]:
            return part
        if whole is None:
            whole = [None if value is None else value.new_empty(logits.shape[:-1]) for value in part]
        for kept, value in zip(whole, part, strict=True):
            if kept is not None and value is not None:
                kept[rows, columns] = value
    assert whole is not None
    return _Reading(*cast(list[Tensor], whole))


def _read_piece(
    logits: Tensor, temperature: float, needs: frozenset[str], excluded: int | None, noise: Tensor | None
) -> _Reading:
    x = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if excluded is not None:
        x[..., excluded] = -math.inf
    top1, token = x.max(-1)
    sample = sample_logit = gap = entropy = None
    if noise is not None:
        sample = (x + noise).argmax(-1)
        sample_logit = x.gather(-1, sample[..., None])[..., 0]
    x.sub_(top1[..., None])
    if not needs.isdisjoint(("margin", "gap")):
        gap = -x.scatter_(-1, token[..., None], -math.inf).amax(-1)
        x.scatter_(-1, token[..., None], (top1 - top1)[..., None])  # 0 again, or NaN
    if temperature != 1:
        x.div_(temperature)
    if "entropy" in needs:
        powers = x.exp()
        total = powers.sum(-1)
        # the floor keeps 0 (-inf) out of the product, at a value whose power is none; NaN passes
        entropy = total.log() - powers.mul_(x.clamp_(min=-300)).sum(-1) / total
    else:
        total = x.exp_().sum(-1)
    return _Reading(token, top1, total.log_(), gap, entropy, sample, sample_logit)


def _pieces(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of logits [B, L, V] that hold about PIECE of them; all of them at once on another device."""
    batch, length, vocabulary = logits.shape
    rows, columns = max(batch, 1), max(length, 1)
    if logits.device.type == "cpu" and logits.numel() > PIECE:
        rows = max(PIECE // (length * vocabulary), 1)
        columns = length if length * vocabulary <= PIECE else max(PIECE // vocabulary, 1)
    for row in range(0, max(batch, 1), rows):
        for column in range(0, max(length, 1), columns):
            yield slice(row, row + rows), slice(column, column + columns)


def _noise(gumbel: Gumbel, logits: Tensor) -> Callable[[slice, slice], Tensor]:
    """The scaled Gumbel noise of a piece, the kernel's."""
    shape, vocabulary = logits.shape[:-1], logits.shape[-1]
    place = torch.arange(shape.numel(), device=logits.device) % max(rows_per_seed(gumbel.seed, shape), 1)
    seeds, offsets, places = gumbel.seed.expand(shape), gumbel.offset.expand(shape), place.reshape(shape)

    def of(rows: slice, columns: slice) -> Tensor:
        seed, offset, place = (each[rows, columns].reshape(-1) for each in (seeds, offsets, places))
        drawn = gumbels(seed, torch.zeros_like(place), offset, place, vocabulary)
        return gumbel.temperature * drawn.reshape(*seeds[rows, columns].shape, vocabulary)

    return of


def _on_device(value: float, logits: Tensor) -> Tensor:
    return torch.full((1,), value, device=logits.device, dtype=torch.promote_types(logits.dtype, torch.float32))


def _filtered(logits: Tensor, sampling: Sampling, excluded: int | None) -> Tensor | None:
    """The logits with -inf for tokens that top_k and top_p leave out; None where nothing is left out."""
    kept = None
    filters = (sampling.top_k or logits.shape[-1]) < logits.shape[-1] or (sampling.top_p or 1.0) < 1
    if filters and excluded is not None:
        logits = logits.index_fill(-1, torch.tensor([excluded], device=logits.device), -math.inf)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        kept = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        kept = logits if kept is None else kept
        kept = kept.masked_fill(~nucleus(kept / (sampling.temperature or 1.0), sampling.top_p), -math.inf)
    return kept
