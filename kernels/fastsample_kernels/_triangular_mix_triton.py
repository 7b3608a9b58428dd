"""triangular_mix's kernel. Each program makes ROWS rows of X over a block of columns, a row of M at a time."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsample_kernels._bound import Launcher
from fastsample_kernels.blocks import block_config


@triton.jit(do_not_specialize=["N"])  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    X,
    a,
    x_T,
    B,
    M,
    N,
    size,
    row_stride,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    blocks = tl.cdiv(size, COLUMNS)
    rows = (tl.program_id(0) // blocks) * ROWS + tl.arange(0, ROWS)
    first = (tl.program_id(0) % blocks).to(tl.int64) * COLUMNS
    lanes = tl.arange(0, COLUMNS)
    inside = lanes < size - first
    last = tl.minimum((tl.program_id(0) // blocks + 1) * ROWS, N)

    weight = tl.load(a + rows, mask=rows < N, other=0.0).to(ACC)[:, None]
    x = tl.load(x_T + first + lanes, mask=inside, other=0.0).to(ACC)[None, :]
    total = tl.where(weight != 0, weight * x, 0.0)
    for start in range(0, last, UNROLL):
        for k in tl.static_range(UNROLL):
            j = start + k
            # above the diagonal the weight is 0, whatever B holds there
            weight = tl.load(B + rows.to(tl.int64) * N + j, mask=(rows < N) & (j <= rows), other=0.0).to(ACC)[:, None]
            here = lanes < tl.where(j < N, size - first, 0)
            m = tl.load(M + j.to(tl.int64) * row_stride + first + lanes, mask=here, other=0.0).to(ACC)[None, :]
            total = tl.where(weight != 0, total + weight * m, total)
    at = X + rows.to(tl.int64)[:, None] * size + (first + lanes)[None, :]
    tl.store(at, total.to(X.dtype.element_ty), mask=(rows < N)[:, None] & inside[None, :])


_launch = Launcher(_kernel)


def launch(X: Tensor, a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, accumulator: torch.dtype) -> None:
    """One launch. All contiguous but M, whose rows are; none empty."""
    N, size = M.shape[0], x_T.numel()
    config = block_config("triangular_mix", M.device)
    rows, columns = min(config["rows"], triton.next_power_of_2(N)), config["columns"]
    acc = tl.float64 if accumulator == torch.float64 else tl.float32
    arguments = (X, a, x_T, B, M, N, size, M.stride(0), acc, rows, columns, min(4, rows))
    _launch(M.device, -(-N // rows) * -(-size // columns), arguments, warps=config["warps"])
