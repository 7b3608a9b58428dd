"""triangular_mix's kernel. Each program makes up to 16 rows of X over a block of columns: a vector a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsample_kernels._device import on
from fastsample_kernels.blocks import block_config


@triton.jit  # type: ignore[untyped-decorator]
def _added(total, weight, vector):  # type: ignore[no-untyped-def]
    return tl.where(weight != 0, total + weight * vector, total)


@triton.jit  # type: ignore[untyped-decorator]
def _appended(vectors, vector):  # type: ignore[no-untyped-def]
    return vectors + (vector,)  # noqa: RUF005


@triton.jit  # type: ignore[untyped-decorator]
def _with_column(  # type: ignore[no-untyped-def]
    sums, B, m, begin, j, N, FIRST: tl.constexpr, ROWS: tl.constexpr
):
    """`sums` with column j's terms in the rows from FIRST on."""
    following = ()
    for i in tl.static_range(ROWS):
        if i < FIRST:
            following = _appended(following, sums[i])
        else:
            weight = tl.load(B + (begin + i).to(tl.int64) * N + j, mask=begin + i < N, other=0.0)
            following = _appended(following, _added(sums[i], weight.to(m.dtype), m))
    return following


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
    UNROLL: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.cdiv(size, COLUMNS)
    begin = (tl.program_id(0) // columns) * ROWS
    first = (tl.program_id(0) % columns).to(tl.int64) * COLUMNS
    lanes = tl.arange(0, COLUMNS)
    inside = lanes < size - first
    x = tl.load(x_T + first + lanes, mask=inside, other=0.0).to(ACC)
    sums = ()
    for i in tl.static_range(ROWS):
        weight = tl.load(a + begin + i, mask=begin + i < N, other=0.0).to(ACC)
        sums = _appended(sums, _added(tl.zeros([COLUMNS], ACC), weight, x))
    for start in range(0, begin, UNROLL):
        for k in tl.static_range(UNROLL):
            j = start + k
            m = tl.load(M + j.to(tl.int64) * row_stride + first + lanes, mask=inside, other=0.0).to(ACC)
            sums = _with_column(sums, B, m, begin, j, N, 0, ROWS)
    for k in tl.static_range(ROWS):  # the triangle on the diagonal
        j = begin + k
        here = lanes < tl.where(j < N, size - first, 0)
        m = tl.load(M + j.to(tl.int64) * row_stride + first + lanes, mask=here, other=0.0).to(ACC)
        sums = _with_column(sums, B, m, begin, j, N, k, ROWS)
    for i in tl.static_range(ROWS):
        at = X + (begin + i).to(tl.int64) * size + first
        here = lanes < tl.where(begin + i < N, size - first, 0)
        tl.store(at + lanes, sums[i].to(X.dtype.element_ty), mask=here)


def launch(X: Tensor, a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, accumulator: torch.dtype) -> None:
    """One launch. All contiguous but M, whose rows are; none empty."""
    N, size = M.shape[0], x_T.numel()
    config = block_config("triangular_mix", M.device)
    rows = min(config["rows"], triton.next_power_of_2(N))
    with on(M.device):
        _kernel[(triton.cdiv(N, rows) * triton.cdiv(size, config["columns"]),)](
            X,
            a,
            x_T,
            B,
            M,
            N,
            size,
            M.stride(0),
            ACC=tl.float64 if accumulator == torch.float64 else tl.float32,
            ROWS=rows,
            UNROLL=min(4, rows),
            COLUMNS=config["columns"],
            num_warps=config["warps"],
        )
