"""A solver step: up to 3 linear combinations of up to 10 tensors in one launch, by a row of a device table.

Floor: one read of each input whose weight is not 0, one write of each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample_kernels._linear_step_check import check, check_dtypes
from fastsample_kernels._linear_step_torch import accumulator, linear_step_lean, linear_step_reference
from fastsample_kernels._registration import batched_first, register
from fastsample_kernels.dispatch import choose_backend

NUMBERED = {5: torch.float16, 6: torch.float32, 7: torch.float64, 15: torch.bfloat16}
"""What c10::ScalarType numbers the floating dtypes."""

LAYOUTS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def linear_step(
    inputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """`out[j] = sum_i table[index, j, i] * inputs[i]`, j < m <= 3, i < k <= 10: one launch, no synchronisation.

    inputs: equal shapes [B, ...], any mix of float32, float16, bfloat16 and float64. Sums are in float32, in float64
        where any input is float64. Those of weight 0 do not enter, NaN or not.
    table: [steps, m, k], float32 or float64.
    index: int64 of 1 element, or [B] for each row at its own step. Outside the table the result is NaN, because
        looking would synchronise; IndexError where torch runs one step on the CPU.
    dtypes: one an output, by default `inputs[0]`'s. Or `out`: what to write to; one may be an input itself.

    Differentiable in inputs, then run by torch. Outputs of channels_last inputs are channels_last;
    other strides are copied to contiguous ones.
    Raises ValueError for tensors that do not fit each other.
    """
    check(inputs, table, index)
    dtypes = check_dtypes(inputs, table, dtypes, out)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
        results = linear_step_reference(inputs, table, index, dtypes)
        return tuple(results if out is None else [t.copy_(r) for t, r in zip(out, results, strict=True)])
    if out is None:
        return tuple(torch.ops.fastsample.linear_step(inputs, table, index, dtypes))
    torch.ops.fastsample.linear_step_out(out, inputs, table, index)
    return tuple(out)


def _new(inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The operation that makes its outputs."""
    dtypes = _as_dtypes(dtypes)
    if choose_backend(inputs[0].device) == "torch":
        form = _layout(inputs) or torch.contiguous_format
        return [t.contiguous(memory_format=form) for t in _torch(inputs, table, index, dtypes)]
    out = _new_fake(inputs, table, index, dtypes)
    _triton(out, inputs, table, index)
    return out


def _new_fake(inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    form = _layout(inputs) or torch.contiguous_format
    return [torch.empty_like(inputs[0], dtype=dtype, memory_format=form) for dtype in _as_dtypes(dtypes)]


def _as_dtypes(dtypes: Sequence[torch.dtype | int]) -> list[torch.dtype]:
    """torch 2.11 hands the operation a list of dtypes as a list of their numbers in C++."""
    return [NUMBERED[dtype] if isinstance(dtype, int) else dtype for dtype in dtypes]


def _into(out: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor) -> None:
    """The operation that writes `out`."""
    if choose_backend(inputs[0].device) == "triton":
        return _triton(out, inputs, table, index)
    results = _torch(inputs, table, index, [tensor.dtype for tensor in out])
    for tensor, result in zip(out, results, strict=True):
        tensor.copy_(result)


def _torch(inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    lean = inputs[0].device.type == "cpu" and index.numel() == 1  # reading the index costs nothing there
    return (linear_step_lean if lean else linear_step_reference)(inputs, table, index, dtypes)


def _triton(out: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor) -> None:
    """Launch on tensors of one dense layout; others are copied first."""
    from fastsample_kernels._linear_step_triton import launch  # Triton is optional

    if inputs[0].numel() == 0:
        return
    table, acc = table.contiguous(), accumulator(inputs)
    if _layout([*inputs, *out]) is not None:
        return launch(out, inputs, table, index, acc)
    inputs = [tensor.contiguous() for tensor in inputs]
    dense = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in out]
    launch(dense, inputs, table, index, acc)
    for tensor, result in zip(out, dense, strict=True):
        tensor.copy_(result)


def _layout(tensors: Sequence[Tensor]) -> torch.memory_format | None:
    """The first memory format that all have."""
    for form in LAYOUTS:
        if all(tensor.is_contiguous(memory_format=form) for tensor in tensors):
            return form
    return None


def _vmap(info: Any, in_dims: Any, inputs: Any, table: Any, index: Any, dtypes: Any) -> Any:
    """A batch of calls is one call whose rows are the calls' rows; the table is common to all."""
    size = info.batch_size
    if in_dims[1] is not None:
        raise ValueError("linear_step under vmap: the table must be common")
    inner = index.numel() // (1 if in_dims[2] is None else size)  # steps of a call

    def flat(tensor: Tensor, dim: int | None) -> Tensor:
        tensor = batched_first(tensor, dim, size)
        return tensor.flatten(0, 1) if inner > 1 else tensor

    if in_dims[2] is not None or index.numel() > 1:
        index = batched_first(index, in_dims[2], size).reshape(-1)
    tensors = [flat(tensor, dim) for tensor, dim in zip(inputs, in_dims[0], strict=True)]
    results = torch.ops.fastsample.linear_step(tensors, table, index, dtypes)
    return [r.unflatten(0, (size, -1)) if inner > 1 else r for r in results], [0] * len(dtypes)


_ARGUMENTS = "Tensor[] inputs, Tensor table, Tensor index"
register("linear_step", f"({_ARGUMENTS}, ScalarType[] dtypes) -> Tensor[]", _new, _new_fake, _vmap)
register("linear_step_out", f"(Tensor(a!)[] out, {_ARGUMENTS}) -> ()", _into, lambda *_: None)
