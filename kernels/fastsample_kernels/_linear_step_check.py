"""What linear_step refuses: one line that names the tensor and what it must be. Values are not looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MAX_INPUTS, MAX_OUTPUTS = 10, 3
FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check(inputs: Sequence[Tensor], table: Tensor, index: Tensor) -> None:
    """Raises ValueError for tensors that do not fit each other. It is a tenth of a step's host time: no frills."""
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise ValueError(f"inputs holds {len(inputs)} tensors: give 1 to {MAX_INPUTS}")
    sample = inputs[0]
    shape, device = sample.shape, sample.device
    for tensor in inputs:
        if tensor.shape != shape or tensor.dtype not in FLOATING:
            raise ValueError(
                f"an input is {tensor.dtype} {tuple(tensor.shape)}: all must be floating and shaped as inputs[0], "
                f"{tuple(shape)}"
            )
        _check_device(tensor, device)
    columns = len(inputs)
    if table.dim() != 3 or table.shape[2] != columns or not 1 <= table.shape[1] <= MAX_OUTPUTS:
        raise ValueError(
            f"table has shape {tuple(table.shape)}: it must be [steps, 1 to {MAX_OUTPUTS} outputs, {columns} inputs]"
        )
    if table.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"table is {table.dtype}: it must be float32 or float64")
    _check_device(table, device)
    rows = shape[0] if shape else 1
    if index.numel() not in (1, rows) or index.dtype != torch.int64:
        raise ValueError(f"index is {index.dtype} {tuple(index.shape)}: it must be int64, 1 or {rows} elements")
    _check_device(index, device)


def _check_device(tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"a tensor is on {tensor.device}: inputs[0] is on {device}")


def check_dtypes(
    inputs: Sequence[Tensor], table: Tensor, dtypes: Sequence[torch.dtype] | None, out: Sequence[Tensor] | None
) -> Sequence[torch.dtype]:
    """The outputs' dtypes. Raises ValueError where there are not as many as the table has rows."""
    if dtypes is not None and out is not None:
        raise ValueError("out has its dtypes: give out or dtypes, not both")
    if out is not None:
        shape, device = inputs[0].shape, inputs[0].device
        if any(tensor.shape != shape or tensor.device != device for tensor in out):
            raise ValueError(f"out holds a tensor that is not of the inputs' shape {tuple(shape)} on {device}")
        dtypes = [tensor.dtype for tensor in out]
    dtypes = dtypes or [inputs[0].dtype] * table.shape[1]
    if len(dtypes) != table.shape[1]:
        raise ValueError(f"{len(dtypes)} outputs are asked for: table {tuple(table.shape)} makes {table.shape[1]}")
    return dtypes
