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
    if output.is_cuda and _tf32_is_allowed():
        eps = max(eps, 2.0**-11)
    return float(eps**0.5)


def _tf32_is_allowed() -> bool:
    """Whether it is in convolutions or matrix products, however that was set."""
    matmul, convolution = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv", None)
    if convolution is None:  # torch before 2.9
        return bool(torch.backends.cudnn.allow_tf32 or matmul.allow_tf32)
    # `allow_tf32` says so too, but raises where this was set in its place
    return "tf32" in (convolution.fp32_precision, matmul.fp32_precision)
