"""A compiled kernel with its grid, launched by pointers: what a launch costs when nothing about it is new.

Triton's own launch reads the kind of every argument anew, to find the kernel compiled for it; that is most of the 30
microseconds it takes. What a bound kernel is given has to be of the kinds that it was compiled for: dtypes, integers
that fit 32 bits or not and their divisors, and pointers that are multiples of 16 bytes or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.runtime import driver

from fastsample_kernels._device import on

MOST = 1024
"""Kinds of launches that are remembered of a kernel."""


class Bound:
    """`kernel` on a grid of `programs`; `constants` are its last arguments, the same at every launch."""

    def __init__(self, kernel: CompiledKernel, programs: int, constants: Sequence[Any]) -> None:
        self._kernel, self._grid, self._constants = kernel, (programs, 1, 1), tuple(constants)

    def __call__(self, device: int, *arguments: Any) -> None:
        """A launch on the current stream of `device`; -1 is the current one. Tensors are given by their pointers."""
        active, launch = driver.active, self._kernel[self._grid]
        current = active.get_current_device()
        if device in (current, -1):
            launch(*arguments, *self._constants, stream=active.get_current_stream(current))
        else:
            with torch.cuda.device(device):
                launch(*arguments, *self._constants, stream=active.get_current_stream(device))


def bound(launched: Any, programs: int, constants: Sequence[Any] = ()) -> Bound | None:
    """What Triton's own launch returned, bound; None where that is not a kernel, as in the interpreter."""
    return Bound(launched, programs, constants) if isinstance(launched, CompiledKernel) else None


class Launcher:
    """Launches `kernel` on tensors of any kind; bound when a launch of the same kind has been before.

    Of one kind are launches whose tensors have the same dtypes and alignment, and all of whose other arguments are
    the same numbers.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._bound: dict[Any, Bound | None] = {}

    def __call__(self, device: torch.device, programs: int, arguments: Sequence[Any], *, warps: int) -> None:
        """`arguments` in the kernel's order, constants too: tensors on `device` or None, tuples of them, numbers."""
        given: list[Any] = []
        kind: list[Any] = [device, programs, warps]
        for argument in arguments:
            if isinstance(argument, Tensor):
                given.append(address := argument.data_ptr())
                kind += (argument.dtype, address % 16)
            elif isinstance(argument, tuple):
                given.append(addresses := tuple([tensor.data_ptr() for tensor in argument]))
                kind += [tensor.dtype for tensor in argument]
                kind += [address % 16 for address in addresses]
            else:
                given.append(argument)
                kind.append(argument)
        key = tuple(kind)
        launch = self._bound.get(key)
        if launch is not None:
            launch(-1 if device.index is None else device.index, *given)
            return
        with on(device):
            made = self._kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=True)
            keep(self._bound, key, bound(made, programs))


def keep(kept: dict[Any, Any], key: Any, value: Any) -> None:
    """As `kept[key] = value`, but of the latest MOST at most."""
    if len(kept) >= MOST:
        kept.clear()
    kept[key] = value
