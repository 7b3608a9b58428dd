"""guidance_factor's kernels: mean and squared deviations of each block, then of each row from its blocks'."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsample_kernels._device import on
from fastsample_kernels.blocks import block_config


@triton.jit  # type: ignore[untyped-decorator]
def _moments(values, inside, count):  # type: ignore[no-untyped-def]
    mean = tl.sum(tl.where(inside, values, 0.0)) / count
    deviations = tl.where(inside, values - mean, 0.0)
    return mean, tl.sum(deviations * deviations)


@triton.jit  # type: ignore[untyped-decorator]
def _blocks_kernel(  # type: ignore[no-untyped-def]
    partial, cond, uncond, guidance, size, guidance_stride, BLOCK: tl.constexpr
):
    """partial: [rows, blocks, 4], mean and squared deviations of the conditional and of the guided output."""
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    inside = lanes < size - start
    first = row * size + start
    acc = partial.dtype.element_ty
    with_ = tl.load(cond + first + lanes, mask=inside, other=0.0).to(acc)
    without = tl.load(uncond + first + lanes, mask=inside, other=0.0).to(acc)
    scale = tl.load(guidance + row * guidance_stride).to(acc)
    count = tl.minimum(size - start, BLOCK).to(acc)
    mean, squares = _moments(with_, inside, count)
    out = partial + tl.program_id(0).to(tl.int64) * 4
    tl.store(out, mean)
    tl.store(out + 1, squares)
    mean, squares = _moments(without + scale * (with_ - without), inside, count)
    tl.store(out + 2, mean)
    tl.store(out + 3, squares)


@triton.jit  # type: ignore[untyped-decorator]
def _row_squares(partial, counts, inside):  # type: ignore[no-untyped-def]
    means = tl.load(partial, mask=inside, other=0.0)
    deviations = means - tl.sum(means * counts) / tl.sum(counts)
    return tl.sum(
        tl.load(partial + 1, mask=inside, other=0.0) + tl.where(inside, deviations * deviations * counts, 0.0)
    )


@triton.jit  # type: ignore[untyped-decorator]
def _rows_kernel(  # type: ignore[no-untyped-def]
    factor, partial, rescale, size, blocks, rescale_stride, BLOCK: tl.constexpr, LANES: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, LANES)
    inside = lanes < blocks
    acc = factor.dtype.element_ty
    counts = tl.maximum(tl.minimum(size - lanes.to(tl.int64) * BLOCK, BLOCK), 0).to(acc)
    at = partial + row * blocks * 4 + lanes * 4
    ratio = tl.sqrt(_row_squares(at, counts, inside) / _row_squares(at + 2, counts, inside))
    weight = tl.load(rescale + row * rescale_stride).to(acc)
    tl.store(factor + row, weight * ratio + (1.0 - weight))


def launch(factor: Tensor, cond: Tensor, uncond: Tensor, guidance: Tensor, rescale: Tensor) -> None:
    """Two launches; `cond` and `uncond` contiguous and not empty."""
    rows = cond.shape[0]
    size = cond.numel() // rows
    config = block_config("guidance_factor", cond.device)
    blocks = triton.cdiv(size, config["block"])
    partial = torch.empty(rows, blocks, 4, dtype=factor.dtype, device=cond.device)
    strides = [0 if values.numel() == 1 else values.reshape(-1).stride(0) for values in (guidance, rescale)]
    with on(cond.device):
        _blocks_kernel[(rows * blocks,)](
            partial, cond, uncond, guidance, size, strides[0], BLOCK=config["block"], num_warps=config["warps"]
        )
        lanes = triton.next_power_of_2(blocks)
        _rows_kernel[(rows,)](
            factor, partial, rescale, size, blocks, strides[1], BLOCK=config["block"], LANES=lanes, num_warps=4
        )
