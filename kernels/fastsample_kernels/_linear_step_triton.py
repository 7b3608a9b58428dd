"""linear_step's kernels: weights from a table on the device, or from the host as arguments of the launch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsample_kernels._bound import Bound, Launcher, bound
from fastsample_kernels._device import on, processors
from fastsample_kernels.blocks import step_block


@triton.jit(do_not_specialize=["steps"])  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    outputs,
    inputs,
    table,
    index,
    steps,
    size,
    index_stride,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    blocks = tl.cdiv(size, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    inside = lanes < size - start
    first = row * size + start

    step = tl.load(index + row * index_stride)
    valid = (step >= 0) & (step < steps)
    weights = table + step * (OUTPUTS * INPUTS)
    nan = float("nan")
    total0 = tl.zeros([BLOCK], ACC)
    total1 = total0
    total2 = total0
    for i in tl.static_range(INPUTS):
        # beyond the table every weight is NaN, and so is every output: no memory outside it is read
        c0 = tl.load(weights + i, mask=valid, other=nan).to(ACC)
        used = c0 != 0
        if OUTPUTS > 1:
            c1 = tl.load(weights + INPUTS + i, mask=valid, other=nan).to(ACC)
            used = used | (c1 != 0)
        if OUTPUTS > 2:
            c2 = tl.load(weights + 2 * INPUTS + i, mask=valid, other=nan).to(ACC)
            used = used | (c2 != 0)
        read = lanes < tl.where(used, size - start, 0)
        value = tl.load(inputs[i] + first + lanes, mask=read, other=0.0).to(ACC)
        total0 = tl.where(c0 != 0, total0 + c0 * value, total0)
        if OUTPUTS > 1:
            total1 = tl.where(c1 != 0, total1 + c1 * value, total1)
        if OUTPUTS > 2:
            total2 = tl.where(c2 != 0, total2 + c2 * value, total2)

    out0 = outputs[0]
    tl.store(out0 + first + lanes, total0.to(out0.dtype.element_ty), mask=inside)
    if OUTPUTS > 1:
        out1 = outputs[1]
        tl.store(out1 + first + lanes, total1.to(out1.dtype.element_ty), mask=inside)
    if OUTPUTS > 2:
        out2 = outputs[2]
        tl.store(out2 + first + lanes, total2.to(out2.dtype.element_ty), mask=inside)


_launch = Launcher(_kernel)


def launch(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor, accumulator: torch.dtype
) -> None:
    """One launch. The tensors of elements are dense in one layout whose outermost dimension is the batch."""
    sample = inputs[0]
    stride = 0 if index.numel() == 1 else index.reshape(-1).stride(0)
    rows = sample.shape[0] if sample.dim() and stride else 1
    size = sample.numel() // rows
    block, warps = step_block(size, rows, sample.device, processors(sample.device))
    arguments = (tuple(outputs), tuple(inputs), table, index, table.shape[0], size, stride, len(inputs), len(outputs))
    acc = tl.float64 if accumulator == torch.float64 else tl.float32
    _launch(sample.device, rows * -(-size // block), (*arguments, acc, block), warps=warps)


@triton.jit  # type: ignore[untyped-decorator]
def _weighted_kernel(  # type: ignore[no-untyped-def]
    outputs,
    inputs,
    weights,
    size,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """As `_kernel` for one step of all rows in float32; `weights` are OUTPUTS * INPUTS numbers, and load nothing."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    inside = lanes < size - first
    total0 = tl.zeros([BLOCK], tl.float32)
    total1 = total0
    total2 = total0
    for i in tl.static_range(INPUTS):
        c0 = weights[i]
        used = c0 != 0
        if OUTPUTS > 1:
            c1 = weights[INPUTS + i]
            used = used | (c1 != 0)
        if OUTPUTS > 2:
            c2 = weights[2 * INPUTS + i]
            used = used | (c2 != 0)
        read = lanes < tl.where(used, size - first, 0)
        value = tl.load(inputs[i] + first + lanes, mask=read, other=0.0).to(tl.float32)
        total0 = tl.where(c0 != 0, total0 + c0 * value, total0)
        if OUTPUTS > 1:
            total1 = tl.where(c1 != 0, total1 + c1 * value, total1)
        if OUTPUTS > 2:
            total2 = tl.where(c2 != 0, total2 + c2 * value, total2)

    out0 = outputs[0]
    tl.store(out0 + first + lanes, total0.to(out0.dtype.element_ty), mask=inside)
    if OUTPUTS > 1:
        out1 = outputs[1]
        tl.store(out1 + first + lanes, total1.to(out1.dtype.element_ty), mask=inside)
    if OUTPUTS > 2:
        out2 = outputs[2]
        tl.store(out2 + first + lanes, total2.to(out2.dtype.element_ty), mask=inside)


def launch_weighted(outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: tuple[float, ...]) -> Bound | None:
    """One launch, by Triton's own way; what it launched, to launch again by pointers. All contiguous, none empty."""
    sample, size = inputs[0], inputs[0].numel()
    block, warps = step_block(size, 1, sample.device, processors(sample.device))
    constants = (size, len(inputs), len(outputs), block)
    programs = -(-size // block)
    with on(sample.device):
        compiled = _weighted_kernel[(programs,)](
            tuple(outputs), tuple(inputs), weights, *constants, num_warps=warps, enable_fp_fusion=True
        )
        return bound(compiled, programs, constants)
