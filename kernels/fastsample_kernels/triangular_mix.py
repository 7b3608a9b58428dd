"""A whole window of a table at once: `X = a x_T + B M`, B lower triangular, in one launch.

A table's closed form over a window, so a sweep of Picard iteration. Floor: one read of M and x_T, one write of X.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastsample_kernels._linear_step_check import FLOATING
from fastsample_kernels._linear_step_torch import accumulator
from fastsample_kernels._registration import batched_first, register
from fastsample_kernels.dispatch import choose_backend


def triangular_mix(
    a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, *, dtype: torch.dtype | None = None, out: Tensor | None = None
) -> Tensor:
    """`X[i] = a[i] x_T + sum_{j <= i} B[i, j] M[j]`, [N, ...]; what is above B's diagonal is not read.

    a: [N], B: [N, N], float32 or float64. x_T: [...], M: [N, ...], any mix of float32, float16, bfloat16 and float64;
    sums are in float32, in float64 where x_T or M is float64. M's rows may lie at any stride. Terms of weight 0 do
    not enter, NaN or not. X has `dtype`, by default x_T's, or is written to `out`, contiguous and apart from M.

    Differentiable in x_T and M, then run by torch. Raises ValueError for tensors that do not fit each other.
    """
    _check(a, x_T, B, M, dtype, out)
    dtype = out.dtype if out is not None else dtype or x_T.dtype
    if torch.is_grad_enabled() and (x_T.requires_grad or M.requires_grad):
        result = triangular_mix_reference(a, x_T, B, M, dtype)
        return result if out is None else out.copy_(result)
    if out is None:
        return torch.ops.fastsample.triangular_mix(a, x_T, B, M, dtype)  # type: ignore[no-any-return]
    torch.ops.fastsample.triangular_mix_out(out, a, x_T, B, M)
    return out


def triangular_mix_reference(a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, dtype: torch.dtype) -> Tensor:
    """The definition in plain torch, on any device, without synchronising; some operations a row."""
    acc = accumulator((x_T, M))
    weights = torch.cat((a[:, None], B.tril()), dim=1).to(acc)
    rows = []
    for i in range(len(a)):
        w = weights[i, : i + 2].reshape(-1, *[1] * x_T.dim())
        terms = torch.cat((x_T[None].to(acc), M[: i + 1].to(acc)))
        rows.append(torch.where(w == 0, 0.0, w * terms).sum(0).to(dtype))
    return torch.stack(rows) if rows else M.new_empty(M.shape, dtype=dtype)


def _lean(a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, dtype: torch.dtype) -> Tensor:
    """The same on the CPU by one matrix product, where nothing is NaN or infinite: 0 times those is not 0."""
    acc = accumulator((x_T, M))
    x, flat = x_T.to(acc).reshape(1, -1), M.to(acc).reshape(len(a), -1)
    if not (x.isfinite().all() and flat.isfinite().all()):
        return triangular_mix_reference(a, x_T, B, M, dtype)
    result = torch.addmm(a.to(acc)[:, None] * x, B.tril().to(acc), flat)
    return result.reshape(M.shape).to(dtype)


def _check(a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, dtype: torch.dtype | None, out: Tensor | None) -> None:
    N = len(M) if M.dim() else 0
    if M.dim() != x_T.dim() + 1 or M.shape[1:] != x_T.shape or {M.dtype, x_T.dtype} - set(FLOATING):
        raise ValueError(
            f"M is {M.dtype} {tuple(M.shape)}, x_T {x_T.dtype} {tuple(x_T.shape)}: they must be floating, [N, ...] "
            "and [...]"
        )
    if a.shape != (N,) or B.shape != (N, N) or {a.dtype, B.dtype} - {torch.float32, torch.float64}:
        raise ValueError(
            f"a is {a.dtype} {tuple(a.shape)}, B {B.dtype} {tuple(B.shape)}: they must be float32 or float64, [{N}] "
            f"and [{N}, {N}]"
        )
    if len({a.device, B.device, x_T.device, M.device}) > 1:
        raise ValueError(
            f"M is on {M.device}, x_T on {x_T.device}, a on {a.device}, B on {B.device}: move them together"
        )
    if out is None:
        return
    if dtype is not None or out.shape != M.shape or out.device != M.device or not out.is_contiguous():
        raise ValueError(f"out must be contiguous, of shape {tuple(M.shape)} on {M.device} as M, and without dtype")


def _new(a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, dtype: torch.dtype) -> Tensor:
    if choose_backend(M.device) == "torch":
        lean = M.device.type == "cpu" and M.numel()
        return (_lean if lean else triangular_mix_reference)(a, x_T, B, M, dtype)
    out = _fake(a, x_T, B, M, dtype)
    _triton(out, a, x_T, B, M)
    return out


def _fake(a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, dtype: torch.dtype) -> Tensor:
    return M.new_empty(M.shape, dtype=dtype)


def _into(out: Tensor, a: Tensor, x_T: Tensor, B: Tensor, M: Tensor) -> None:
    if choose_backend(M.device) == "triton":
        _triton(out, a, x_T, B, M)
    else:
        out.copy_(_new(a, x_T, B, M, out.dtype))


def _triton(out: Tensor, a: Tensor, x_T: Tensor, B: Tensor, M: Tensor) -> None:
    from fastsample_kernels._triangular_mix_triton import launch  # Triton is optional

    if out.numel():
        if not M[0].is_contiguous():
            M = M.contiguous()
        launch(out, a.contiguous(), x_T.contiguous(), B.contiguous(), M, accumulator((x_T, M)))


def _vmap(info: Any, in_dims: Any, a: Tensor, x_T: Tensor, B: Tensor, M: Tensor, dtype: torch.dtype) -> Any:
    """Vmapped columns are more columns."""
    if in_dims[0] is not None or in_dims[2] is not None:
        raise ValueError("triangular_mix under vmap: a and B must be common")
    x_T, M = (batched_first(tensor, dim, info.batch_size) for tensor, dim in ((x_T, in_dims[1]), (M, in_dims[3])))
    return torch.ops.fastsample.triangular_mix(a, x_T, B, M.transpose(0, 1), dtype), 1


register(
    "triangular_mix", "(Tensor a, Tensor x_T, Tensor B, Tensor M, ScalarType dtype) -> Tensor", _new, _fake, _vmap
)
register(
    "triangular_mix_out",
    "(Tensor(a!) out, Tensor a, Tensor x_T, Tensor B, Tensor M) -> ()",
    _into,
    lambda *_: None,
)
