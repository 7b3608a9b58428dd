"""How far a row may differ from itself for being evaluated beside others."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def allowed_difference(output: Tensor, given: Iterable[Tensor] = ()) -> float:
    """Relative, RMS: the root of the coarsest rounding on the way from the tensors `given` to `output`.

    On CUDA, where products of float32 may be rounded to the 10 bits of TF32, which the kernels for another batch
    size need not be; torch does so in convolutions unless told otherwise.
    """
    eps = max(torch.finfo(value.dtype).eps for value in (output, *given) if value.is_floating_point())
    if output.is_cuda and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
        eps = max(eps, 2.0**-11)
    return float(eps**0.5)
