"""linear_step for a loop: weights that the host knows, and a launch that is bound once and then only repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

ALIGNED = 15
"""Bits that are 0 in the address of what a compiled kernel reads 16 bytes at a time."""


class WeightedStep:
    """`out[j] = sum_i weights[j k + i] * inputs[i]` in float32, j < m <= 3, i < k <= 10: one launch.

    Where a call is out of the ordinary it does nothing and returns None, and `linear_step` is to be called, which
    takes everything or says what is wrong: inputs of unlike shapes or devices, a sample in other strides, float64,
    gradients, tensor subclasses, tracing. The first call with new dtypes or a new shape compiles; the others launch
    what that did, on the stream that is current, from any thread.
    """

    def __init__(self) -> None:
        self._bound: dict[Any, Any] = {}

    def __call__(
        self, inputs: Sequence[Tensor], weights: tuple[float, ...], dtypes: Sequence[torch.dtype]
    ) -> list[Tensor] | None:
        """New tensors of `dtypes`, one a row of `weights`."""
        if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return None
        sample = inputs[0]
        shape, device, grad = sample.shape, sample.device, torch.is_grad_enabled()
        addresses, kinds, address_bits = [], [], 0
        for place, tensor in enumerate(inputs):
            if type(tensor) is not Tensor or tensor.shape != shape or tensor.device != device:
                return None
            if grad and tensor.requires_grad:
                return None
            if not tensor.is_contiguous():
                if place == 0:
                    return None  # the outputs are to lie as the sample does
                tensor = tensor.contiguous()
                inputs = [*inputs[:place], tensor, *inputs[place + 1 :]]
            address = tensor.data_ptr()
            addresses.append(address)
            kinds.append(tensor.dtype)
            address_bits |= address
        outputs = [torch.empty_like(sample, dtype=dtype) for dtype in dtypes]
        key = shape, device, tuple(kinds), tuple(dtypes)
        launch = self._bound.get(key)
        if launch is not None and not address_bits & ALIGNED:
            launch(sample.get_device(), tuple([tensor.data_ptr() for tensor in outputs]), tuple(addresses), weights)
            return outputs
        if torch.float64 in kinds or not sample.numel():
            return None
        from fastsample_kernels._bound import keep  # Triton is optional
        from fastsample_kernels._linear_step_triton import launch_weighted

        launched = launch_weighted(outputs, inputs, weights)
        if not address_bits & ALIGNED:
            keep(self._bound, key, launched)
        return outputs
