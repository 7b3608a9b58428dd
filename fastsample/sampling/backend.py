"""The one door to the kernels, and the torch backend: linear combinations in as few operations as may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastsample_kernels import WeightedStep as WeightedStep
from fastsample_kernels import choose_backend, linear_step, requested_backend
from fastsample_kernels import forced_backend as forced_backend
from torch import Tensor

from fastsample.tables.lower import Sum, sum_of

MOST_INPUTS, MOST_OUTPUTS = 10, 3
"""Of one launch of the fused step."""

with torch.inference_mode(False):  # whatever the import is in; these are never written to
    ZERO = {dtype: torch.zeros((), dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}
    ONE = {dtype: torch.ones(1, dtype=dtype, device="cpu") for dtype in ZERO}

Stored = tuple[Tensor | None, ...]
"""What a sampler carries from step to step, by a table's stored slots, in float32 or wider; None where nothing."""


def fuses(device: torch.device, *, light: bool = False) -> bool:
    """Whether steps on `device` run as single Triton launches: on a GPU with Triton unless they are `light`.

    `FASTSAMPLE_KERNELS` and `fastsample_kernels.use_backend` force either.
    """
    return choose_backend(device) == "triton" and not (light and requested_backend()[0] is None)


FEW, SMALL = 2, 1 << 22
"""Operations a step, and elements, up to which a fused step takes the host longer than it saves the device.

Measured on an H100 by `scripts/gpu --parts crossover`, steps back to back.
"""


def combine_fused(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]
) -> tuple[Tensor, ...]:
    """Row `index` of `table` [steps, m, k], all its combinations in one launch; both are on the inputs' device."""
    return linear_step(inputs, table, index, dtypes=dtypes)


def combine_into(out: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor) -> None:
    """As :func:`combine_fused`, written to `out`; on any device."""
    linear_step(inputs, table, index, out=out)


def accumulation_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 where any is float64, float32 for everything narrower."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def combine(weights: Sequence[float], tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """`sum_i weights[i] * tensors[i]` by :func:`add_up`; tensors with weight 0 are not read."""
    return add_up(sum_of({place: weight for place, weight in enumerate(weights) if weight}), tensors, dtype)


def product(weights: Tensor, values: Tensor, onto: Tensor | None = None) -> Tensor:
    """`weights @ values` of each item, [B, n, K] by [B, K, D] of one dtype; added to `onto` in place where given.

    As exact as that dtype, whatever autocast and TF32 do to other products.
    """
    kind = values.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return product(weights, values, onto)
    if values.dtype == torch.float32 and _rounds_products(values.device):
        made = torch.bmm(weights.double(), values.double()).float()
        return made if onto is None else onto.add_(made)
    return torch.bmm(weights, values) if onto is None else onto.baddbmm_(weights, values)


def _rounds_products(device: torch.device) -> bool:
    """Whether products of float32 matrices are allowed fewer bits there."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)
    if precision is None:  # before torch 2.9
        return torch.get_float32_matmul_precision() != "highest"
    return device.type in ("cpu", "cuda") and precision not in ("ieee", "none")


def add_up(total: Sum, values: Sequence[Any], dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """The sum `total` of `values`, added in `dtype`: a new tensor of that dtype, or `out`, which may be narrower.

    One operation a term, one less where the factor is 1. Weights are Python floats: no device synchronisation.
    Values narrower than `dtype` are read as they are, not copied first.
    """
    lead, others, factor = total
    first = values[lead]
    if not others:
        if factor == 1.0:
            return first.to(dtype, copy=True) if out is None else out.copy_(first)
        # a sum of nothing is 0 even where the value is not finite
        only = first.to(dtype) * factor if factor else torch.zeros_like(first, dtype=dtype)
        return only if out is None else out.copy_(only)
    wide = out if out is not None and out.dtype == dtype else None
    place, ratio = others[0]
    second = values[place]
    if first.dtype == dtype or second.dtype == dtype:
        result = torch.add(first, second, alpha=ratio, out=wide)
    else:  # a third tensor of one element says in which dtype to add
        one = ONE[dtype] if first.is_cpu else first.new_ones(1, dtype=dtype)
        result = torch.addcmul(first, second, one, value=ratio, out=wide)
    for place, ratio in others[1:]:
        result.add_(values[place], alpha=ratio)
    if factor == 1.0 and out is wide:
        return result
    if result.requires_grad:  # what writes to a given tensor has no gradient
        return result * factor if out is None else (result * factor).to(out.dtype)
    # torch makes a tensor of a number that it multiplies with, not of this one
    return torch.add(ZERO[result.dtype], result, alpha=factor, out=result if out is None else out)
