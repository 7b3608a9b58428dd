"""The torch backend: a linear combination in as few operations as eager torch allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any is float64, float32 for everything narrower."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def combine(weights: Sequence[float], tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`sum_i weights[i] * tensors[i]`, accumulated and returned in `dtype`; tensors with weight 0 are not read.

    One operation a term, one less where the first weight is 1 and a second term follows, one more where the first
    tensor is narrower. The result is a new tensor. The weights are Python floats: no device synchronisation.
    """
    terms = [(weight, tensor) for weight, tensor in zip(weights, tensors, strict=True) if weight != 0]
    if not terms:
        return torch.zeros_like(tensors[0], dtype=dtype)
    (weight, tensor), *rest = terms
    if weight == 1 and tensor.dtype == dtype and rest:
        (weight, other), *rest = rest
        total = torch.add(tensor, other, alpha=weight)
    elif weight == 1:
        total = tensor.to(dtype, copy=True)
    else:
        total = tensor.to(dtype) * weight
    for weight, tensor in rest:
        total.add_(tensor, alpha=weight)
    return total
