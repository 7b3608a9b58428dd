"""Guidance rescale (Lin et al., arXiv 2305.08891, section 3.4) as one factor a row, for linear_step to apply.

Two launches: sums over blocks, then one number a row. Floor: one read of both model outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample_kernels._linear_step_check import FLOATING
from fastsample_kernels._linear_step_torch import accumulator, by_row
from fastsample_kernels._registration import register
from fastsample_kernels.dispatch import choose_backend


def guidance_factor(cond: Tensor, uncond: Tensor, guidance: Tensor, rescale: Tensor) -> Tensor:
    """`r std(c) / std(u + g (c - u)) + 1 - r` for each row [B], which times the guided output is the rescaled one.

    cond, uncond: [B, ...] of one shape, floating; standard deviations are over all but the first dimension. guidance,
    rescale: floating, 1 or B elements. float32 out (float64 for float64 inputs); NaN for empty rows and those of one
    value, as the formula says. Raises ValueError for tensors that do not fit each other.
    """
    if cond.shape != uncond.shape or cond.dim() == 0 or {cond.dtype, uncond.dtype} - set(FLOATING):
        raise ValueError(
            f"cond is {cond.dtype} {tuple(cond.shape)}, uncond {uncond.dtype} {tuple(uncond.shape)}: they must be "
            "floating, [B, ...], of one shape"
        )
    for name, values in (("guidance", guidance), ("rescale", rescale)):
        if values.numel() not in (1, cond.shape[0]) or values.dtype not in FLOATING:
            raise ValueError(
                f"{name} is {values.dtype} {tuple(values.shape)}: it must be floating, 1 or {cond.shape[0]} elements"
            )
    return torch.ops.fastsample.guidance_factor(cond, uncond, guidance, rescale)  # type: ignore[no-any-return]


def guidance_factor_reference(cond: Tensor, uncond: Tensor, guidance: Tensor, rescale: Tensor) -> Tensor:
    """The definition, in plain torch."""
    acc = accumulator((cond, uncond))
    with_, without = cond.to(acc), uncond.to(acc)
    guided = without + by_row(guidance, cond).to(acc) * (with_ - without)
    ratio = with_.flatten(1).std(1, correction=0) / guided.flatten(1).std(1, correction=0)
    weight = rescale.reshape(-1).to(acc)
    return weight * ratio + (1 - weight)


def _operation(cond: Tensor, uncond: Tensor, guidance: Tensor, rescale: Tensor) -> Tensor:
    if cond.numel() == 0:
        return _fake(cond, uncond, guidance, rescale).fill_(torch.nan)
    if choose_backend(cond.device) == "torch":
        return guidance_factor_reference(cond, uncond, guidance, rescale)
    from fastsample_kernels._guidance_triton import launch  # Triton is optional

    factor = _fake(cond, uncond, guidance, rescale)
    launch(factor, cond.contiguous(), uncond.contiguous(), guidance, rescale)
    return factor


def _fake(cond: Tensor, uncond: Tensor, guidance: Tensor, rescale: Tensor) -> Tensor:
    return cond.new_empty(cond.shape[0], dtype=accumulator((cond, uncond)))


register(
    "guidance_factor", "(Tensor cond, Tensor uncond, Tensor guidance, Tensor rescale) -> Tensor", _operation, _fake
)
