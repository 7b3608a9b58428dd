"""The one door to the kernels, and the torch backend: linear combinations in as few operations as may be."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastsample_kernels import choose_backend, linear_step
from torch import Tensor

MOST_INPUTS, MOST_OUTPUTS = 10, 3
"""Of one launch of the fused step."""


def fuses(device: torch.device) -> bool:
    """Whether steps on `device` run as single Triton launches: on a GPU with Triton, or where it is forced.

    `FASTSAMPLE_KERNELS` and `fastsample_kernels.use_backend` force either.
    """
    return choose_backend(device) == "triton"


def combine_fused(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, ...]:
    """All of a step's combinations in one launch: `table` [1, m, k] and `index` are on the inputs' device."""
    return linear_step(inputs, table, index, dtypes=dtypes)


def combine_into(out: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor) -> None:
    """As :func:`combine_fused` with row `index` of `table` [steps, m, k], written to `out`; on any device."""
    linear_step(inputs, table, index, out=out)


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
