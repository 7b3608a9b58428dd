"""What a commit rule asks of logits, in one pass: arg-max, two largest, logsumexp, entropy, and a Gumbel sample.

Floor: one read of the logits; 32 bytes a row are written.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample_kernels._registration import batched_first, register
from fastsample_kernels.counter_random import gumbels, rows_per_seed
from fastsample_kernels.dispatch import choose_backend

MAX_VOCABULARY = 262144
NARROW = (torch.float32, torch.float16, torch.bfloat16)


class TokenStatistics(NamedTuple):
    """One value a row of logits: int64 `token` and `sample`, the rest float32.

    `probability` of a token with logit x, at the temperature given: `exp(x / temperature - logsumexp)`.
    """

    token: Tensor
    """Arg-max, the lowest index on ties."""
    top1: Tensor
    """Largest logit, without temperature."""
    top2: Tensor
    """Second largest, equal to top1 on ties; -inf in a vocabulary of 1."""
    logsumexp: Tensor
    """Of logits / temperature."""
    entropy: Tensor
    """Of softmax(logits / temperature), in nats."""
    sample: Tensor | None = None
    """With `gumbel`: a draw from softmax(logits / gumbel temperature)."""
    sample_logit: Tensor | None = None
    """Its logit, without temperature."""


class Gumbel(NamedTuple):
    """Arg-max of `logits + temperature * g`, g standard Gumbel noise by a counter-based generator.

    temperature: floating; 0 is the arg-max. seed, offset: int64, offset below 2^32. On the logits' device, each
    broadcastable to the rows' shape. A draw depends on its row's seed and offset and on its place among the rows
    that share a seed: with logits [B, L, V] and seed [B, 1] a sequence does not depend on its batch.
    """

    temperature: Tensor
    seed: Tensor
    offset: Tensor


def token_statistics(
    logits: Tensor,
    *,
    temperature: Tensor | None = None,
    gumbel: Gumbel | None = None,
    excluded: int | None = None,
) -> TokenStatistics:
    """Statistics of each row of `logits` [..., V], shaped as its leading dimensions; computed in float32.

    logits: float32, float16 or bfloat16, V from 1 to 262144. Rows may lie at any two strides (a block of positions of
        a batch); logits whose last dimension is not contiguous are copied.
    temperature: floating, above 0, on the device, broadcastable to the rows' shape.
    excluded: a token that is left out as if its logit were -inf, without a copy of the logits: the mask token.

    -inf is legal. A row of -inf alone has token 0, top1 = top2 = logsumexp = -inf and entropy NaN, as there is no
    distribution; one with +inf has logsumexp inf and entropy NaN. NaN in a row makes its values NaN, and token and
    sample the first NaN's index, as in torch.argmax.

    Not differentiable. Raises ValueError for another dtype, V or shape, or an excluded token outside the vocabulary.
    """
    rows = logits.shape[:-1]
    if logits.dim() == 0 or logits.dtype not in NARROW or not 1 <= logits.shape[-1] <= MAX_VOCABULARY:
        raise ValueError(
            f"logits are {logits.dtype} {tuple(logits.shape)}: they must be float32, float16 or bfloat16, [..., V], "
            f"V from 1 to {MAX_VOCABULARY}"
        )
    if excluded is not None and not 0 <= excluded < logits.shape[-1]:
        raise ValueError(f"excluded = {excluded}: give a token of the vocabulary of {logits.shape[-1]}")
    for name, values in {"temperature": temperature, **(gumbel._asdict() if gumbel else {})}.items():
        if values is None:
            continue
        whole = name in ("seed", "offset")
        if not _broadcasts(values, rows) or not (
            values.dtype == torch.int64 if whole else values.is_floating_point()
        ):
            raise ValueError(
                f"{name} is {values.dtype} {tuple(values.shape)}: it must be {'int64' if whole else 'floating'} and "
                f"broadcast to the rows' shape {tuple(rows)}"
            )
        if values.device != logits.device:
            raise ValueError(f"{name} is on {values.device}: the logits are on {logits.device}")
    values, indices = torch.ops.fastsample.token_statistics(
        logits.detach(), temperature, *(gumbel or (None,) * 3), excluded
    )
    top1, top2, logsumexp, entropy, *sample_logit = values.unbind(0)
    token, *sample = indices.unbind(0)
    return TokenStatistics(token, top1, top2, logsumexp, entropy, *sample, *sample_logit)


def token_statistics_reference(
    logits: Tensor,
    temperature: Tensor | None,
    gumbel_temperature: Tensor | None = None,
    seed: Tensor | None = None,
    offset: Tensor | None = None,
    excluded: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, in plain torch: values [4 or 5, ...] and indices [1 or 2, ...] in TokenStatistics' order.

    Computed in float32, or in float64 for float64 logits, which only this reference takes.
    """
    rows, vocabulary = logits.shape[:-1], logits.shape[-1]
    exact = logits if logits.dtype == torch.float64 else logits.float()
    if excluded is not None:
        exact = torch.where(torch.arange(vocabulary, device=logits.device) == excluded, -math.inf, exact)
    token = exact.argmax(-1)
    top1 = exact.gather(-1, token[..., None])[..., 0]
    top2 = exact.topk(2, dim=-1).values[..., 1] if vocabulary > 1 else torch.full_like(top1, -math.inf)
    top2 = torch.where(top1.isnan(), top1, top2)
    scaled = exact if temperature is None else exact / temperature.to(exact).expand(rows)[..., None]
    logsumexp = scaled.logsumexp(-1)
    # not softmax, whose sum in float32 loses digits on some processors where the vocabulary is large
    entropy = torch.special.entr((scaled - logsumexp[..., None]).exp()).sum(-1)
    values, indices = [top1, top2, logsumexp, entropy], [token]
    if gumbel_temperature is not None and seed is not None and offset is not None:
        count = rows.numel()
        seeds, offsets = (tensor.expand(rows).reshape(-1) for tensor in (seed, offset))
        place = torch.arange(count, device=logits.device) % max(rows_per_seed(seed, rows), 1)
        noise = gumbels(seeds, torch.zeros_like(place), offsets, place, vocabulary).reshape(logits.shape)
        sample = (exact + gumbel_temperature.to(exact).expand(rows)[..., None] * noise).argmax(-1)
        indices.append(sample)
        values.append(exact.gather(-1, sample[..., None])[..., 0])
    return torch.stack(values), torch.stack(indices)


def _broadcasts(values: Tensor, rows: torch.Size) -> bool:
    tail = rows[len(rows) - values.dim() :] if values.dim() <= len(rows) else ()
    return values.dim() <= len(rows) and all(
        own in (1, extent) for own, extent in zip(values.shape, tail, strict=True)
    )


def _operation(
    logits: Tensor,
    temperature: Tensor | None,
    gumbel_temperature: Tensor | None,
    seed: Tensor | None,
    offset: Tensor | None,
    excluded: int | None = None,
) -> tuple[Tensor, Tensor]:
    rest = (gumbel_temperature, seed, offset, excluded)
    if choose_backend(logits.device) == "torch":
        return token_statistics_reference(logits, temperature, *rest)
    from fastsample_kernels._token_statistics_triton import launch  # Triton is optional

    values, indices = _fake(logits, temperature, *rest)
    if indices.numel():
        launch(values, indices, logits, temperature, *rest)
    return values, indices


def _fake(
    logits: Tensor, temperature: Tensor | None, gumbel_temperature: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    rows, sampled = logits.shape[:-1], gumbel_temperature is not None
    return (
        logits.new_empty(4 + sampled, *rows, dtype=torch.float32),
        logits.new_empty(1 + sampled, *rows, dtype=torch.int64),
    )


def _vmap(info: Any, in_dims: Any, logits: Tensor, *rest: Any) -> Any:
    """Vmapped rows are rows; they share a seed where it is not vmapped."""
    size = info.batch_size
    first = batched_first(logits, in_dims[0], size)
    flat: list[Any] = [first]
    for tensor, dim in zip(rest[:4], in_dims[1:5], strict=True):
        if tensor is not None and dim is not None:
            tensor = tensor.movedim(dim, 0)
            missing = first.dim() - 1 - tensor.dim()
            tensor = tensor.reshape(size, *[1] * missing, *tensor.shape[1:])
        flat.append(tensor)
    return torch.ops.fastsample.token_statistics(*flat, *rest[4:]), (1, 1)


register(
    "token_statistics",
    "(Tensor logits, Tensor? temperature, Tensor? gumbel_temperature, Tensor? seed, Tensor? offset, "
    "int? excluded=None) -> (Tensor, Tensor)",
    _operation,
    _fake,
    _vmap,
)
