"""linear_step in plain torch: the reference, and a lean form for the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulator(inputs: Sequence[Tensor]) -> torch.dtype:
    """float64 where any input is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32


def linear_step_reference(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """The definition, on any device, without synchronising and differentiable; four operations a term."""
    sample, acc = inputs[0], accumulator(inputs)
    index = index.reshape(-1)
    valid = (index >= 0) & (index < table.shape[0])
    rows = table.index_select(0, torch.where(valid, index, 0)).to(acc)
    rows = torch.where(valid[:, None, None], rows, torch.nan)
    results = []
    for j, dtype in enumerate(dtypes):
        total = torch.zeros_like(sample, dtype=acc)
        for i, value in enumerate(inputs):
            weight = by_row(rows[:, j, i], sample)
            total = total + torch.where(weight == 0, 0.0, weight * value.to(acc))
        results.append(total.to(dtype))
    return results


def linear_step_lean(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """The same for one step on the CPU: an operation a term, nothing allocated but the sums."""
    step, acc = int(index), accumulator(inputs)
    if not 0 <= step < table.shape[0]:
        raise IndexError(f"index = {step}: the table has {table.shape[0]} steps")
    results = []
    for weights, dtype in zip(table[step].tolist(), dtypes, strict=True):
        terms = [(weight, value) for weight, value in zip(weights, inputs, strict=True) if weight != 0]
        (weight, value), *others = terms or [(1.0, torch.zeros_like(inputs[0]))]
        total = value * weight if value.dtype == acc else value.to(acc).mul_(weight)
        for weight, value in others:
            total.add_(value, alpha=weight)
        results.append(total.to(dtype))
    return results


def by_row(values: Tensor, sample: Tensor) -> Tensor:
    """1 or B values as something that broadcasts over the sample."""
    return values.reshape(()) if values.numel() == 1 else values.reshape(-1, *[1] * (sample.dim() - 1))
