"""A solver step: up to 3 linear combinations of up to 10 tensors in one launch, by a row of a device table.

Floor: one read of each input whose weight is not 0, one write of each output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample_kernels._linear_step_check import check, check_dtypes
from fastsample_kernels._linear_step_torch import Extras, accumulator, linear_step_lean, linear_step_reference
from fastsample_kernels._registration import batched_first, register
from fastsample_kernels.dispatch import choose_backend

LAYOUTS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


class Noise(NamedTuple):
    """Standard normal noise from a counter-based generator, opt-in: torch's own generator has another stream.

    `seed`, `offset`: int64 tensors of 1 element or one a batch row, on the device; offset below 2^32. The draw of an
    element depends on its row's seed and offset, the step index and its place in the row; with one seed for all, on
    the row's number too. So a replayed graph draws anew at each step, and a step done again draws the same.
    """

    seed: Tensor
    offset: Tensor


def linear_step(
    inputs: Sequence[Tensor],
    table: Tensor,
    index: Tensor,
    *,
    dtypes: Sequence[torch.dtype] | None = None,
    out: Sequence[Tensor] | None = None,
    uncond: Tensor | None = None,
    guidance: Tensor | None = None,
    guided: int = 1,
    factor: Tensor | None = None,
    noise: Noise | None = None,
) -> tuple[Tensor, ...]:
    """`out[j] = sum_i table[index, j, i] * inputs[i]`, j < m <= 3, i < k <= 10: one launch, no synchronisation.

    inputs: equal shapes [B, ...], any mix of float32, float16, bfloat16 and float64. Sums are in float32, in float64
        where any input is float64. Those of weight 0 do not enter, NaN or not.
    table: [steps, m, k], float32 or float64; with `noise` [steps, m, k + 1], the noise's weight last.
    index: int64 of 1 element, or [B] for each row at its own step. Outside the table the result is NaN, because
        looking would synchronise; IndexError where torch runs one step on the CPU.
    dtypes: one an output, by default `inputs[0]`'s. Or `out`: what to write to; one may be an input itself.
    uncond, guidance: `inputs[guided]` becomes u + g (c - u), u = uncond, g of 1 or B elements. `factor`, 1 or B
        elements (see `guidance_factor`), multiplies that.

    Differentiable in inputs and uncond, then run by torch. Outputs of channels_last inputs are channels_last;
    other strides are copied to contiguous ones.
    Raises ValueError for tensors that do not fit each other.
    """
    extras = Extras(uncond, guidance, guided, factor, *(noise or (None, None)))
    check(inputs, table, index, extras)
    dtypes = check_dtypes(inputs, table, dtypes, out)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*inputs, uncond) if t is not None):
        results = linear_step_reference(inputs, table, index, dtypes, extras)
        return tuple(results if out is None else [t.copy_(r) for t, r in zip(out, results, strict=True)])
    if out is None:
        return tuple(torch.ops.fastsample.linear_step(inputs, table, index, dtypes, *extras))
    torch.ops.fastsample.linear_step_out(out, inputs, table, index, *extras)
    return tuple(out)


def _new(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype], *extras: Any
) -> list[Tensor]:
    """The operation that makes its outputs."""
    if choose_backend(inputs[0].device) == "torch":
        form = _layout(inputs) or torch.contiguous_format
        return [t.contiguous(memory_format=form) for t in _torch(inputs, table, index, dtypes, Extras(*extras))]
    out = _new_fake(inputs, table, index, dtypes, *extras)
    _triton(out, inputs, table, index, Extras(*extras))
    return out


def _new_fake(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype], *extras: Any
) -> list[Tensor]:
    form = _layout(inputs) or torch.contiguous_format
    return [torch.empty_like(inputs[0], dtype=dtype, memory_format=form) for dtype in dtypes]


def _into(out: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor, *extras: Any) -> None:
    """The operation that writes `out`."""
    if choose_backend(inputs[0].device) == "triton":
        return _triton(out, inputs, table, index, Extras(*extras))
    results = _torch(inputs, table, index, [tensor.dtype for tensor in out], Extras(*extras))
    for tensor, result in zip(out, results, strict=True):
        tensor.copy_(result)


def _torch(
    inputs: Sequence[Tensor], table: Tensor, index: Tensor, dtypes: Sequence[torch.dtype], extras: Extras
) -> list[Tensor]:
    lean = inputs[0].device.type == "cpu" and index.numel() == 1  # reading the index costs nothing there
    return (linear_step_lean if lean else linear_step_reference)(inputs, table, index, dtypes, extras)


def _triton(out: Sequence[Tensor], inputs: Sequence[Tensor], table: Tensor, index: Tensor, extras: Extras) -> None:
    """Launch on tensors of one dense layout; others are copied first. Noise is numbered along contiguous rows."""
    from fastsample_kernels._linear_step_triton import launch  # Triton is optional

    if inputs[0].numel() == 0:
        return
    table, acc = table.contiguous(), accumulator(inputs)
    form = _layout([*inputs, *out] if extras.uncond is None else [*inputs, *out, extras.uncond])
    if form is not None and (extras.seed is None or form == torch.contiguous_format):
        return launch(out, inputs, table, index, extras, acc)
    inputs = [tensor.contiguous() for tensor in inputs]
    if extras.uncond is not None:
        extras = extras._replace(uncond=extras.uncond.contiguous())
    dense = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in out]
    launch(dense, inputs, table, index, extras, acc)
    for tensor, result in zip(out, dense, strict=True):
        tensor.copy_(result)


def _layout(tensors: Sequence[Tensor]) -> torch.memory_format | None:
    """The first memory format that all have."""
    for form in LAYOUTS:
        if all(tensor.is_contiguous(memory_format=form) for tensor in tensors):
            return form
    return None


def _vmap(info: Any, in_dims: Any, inputs: Any, table: Any, index: Any, dtypes: Any, *rest: Any) -> Any:
    """A batch of calls is one call whose rows are the calls' rows; the table is common to all."""
    size, extras, dims = info.batch_size, Extras(*rest), [*in_dims, *[None] * 6]
    if dims[1] is not None or extras.seed is not None:
        raise ValueError("linear_step under vmap: the table must be common, and noise takes one seed a row instead")
    of_rows = [(index, dims[2]), (extras.guidance, dims[5]), (extras.factor, dims[7])]
    inner = max(tensor.numel() // (1 if dim is None else size) for tensor, dim in of_rows if tensor is not None)

    def flat(tensor: Tensor, dim: int | None) -> Tensor:
        tensor = batched_first(tensor, dim, size)
        return tensor.flatten(0, 1) if inner > 1 else tensor

    def by_row(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None or (dim is None and tensor.numel() == 1):
            return tensor
        return batched_first(tensor, dim, size).reshape(size, -1).expand(size, inner).reshape(-1)

    index, guidance, factor = (by_row(tensor, dim) for tensor, dim in of_rows)
    uncond = None if extras.uncond is None else flat(extras.uncond, dims[4])
    extras = extras._replace(uncond=uncond, guidance=guidance, factor=factor)
    tensors = [flat(tensor, dim) for tensor, dim in zip(inputs, dims[0], strict=True)]
    results = torch.ops.fastsample.linear_step(tensors, table, index, dtypes, *extras)
    return [r.unflatten(0, (size, -1)) if inner > 1 else r for r in results], [0] * len(dtypes)


_ARGUMENTS = (
    "Tensor[] inputs, Tensor table, Tensor index, {}Tensor? uncond=None, Tensor? guidance=None, int guided=1, "
    "Tensor? factor=None, Tensor? seed=None, Tensor? offset=None"
)
register("linear_step", f"({_ARGUMENTS.format('ScalarType[] dtypes, ')}) -> Tensor[]", _new, _new_fake, _vmap)
register("linear_step_out", f"(Tensor(a!)[] out, {_ARGUMENTS.format('')}) -> ()", _into, lambda *_: None)
