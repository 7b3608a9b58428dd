"""A compiled kernel with its grid, launched by pointers: what a launch costs when nothing about it is new.

Triton's own launch reads the kind of every argument anew, to find the kernel compiled for it; that is most of the 30
microseconds it takes. Here the caller answers for the arguments being of the kinds that the kernel was compiled for:
dtypes, integers in 32 bits or not, and pointers that are multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from triton.compiler import CompiledKernel
from triton.runtime import driver


class Bound:
    """`kernel` on a grid of `programs`; `constants` are its last arguments, the same at every launch."""

    def __init__(self, kernel: CompiledKernel, programs: int, constants: Sequence[Any]) -> None:
        self._run, self._constants = kernel[(programs, 1, 1)], tuple(constants)

    def __call__(self, device: int, *arguments: Any) -> None:
        """A launch on the current stream of `device`; -1 is the current one. Tensors are given by their pointers."""
        active = driver.active
        current = active.get_current_device()
        if device in (current, -1):
            self._run(*arguments, *self._constants, stream=active.get_current_stream(current))
        else:
            with torch.cuda.device(device):
                self._run(*arguments, *self._constants, stream=active.get_current_stream(device))


def bound(launched: Any, programs: int, constants: Sequence[Any]) -> Bound | None:
    """What Triton's own launch returned, bound; None where that is not a kernel, as in the interpreter."""
    return Bound(launched, programs, constants) if isinstance(launched, CompiledKernel) else None
