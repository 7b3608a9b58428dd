"""Which backend runs an operation: Triton on a GPU, torch elsewhere, or the one that is forced."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, cast

import torch

from fastsample_kernels._device import interpreting, runs_triton, triton_problem

Backend = Literal["torch", "triton"]
VARIABLE = "FASTSAMPLE_KERNELS"
_forced: ContextVar[Backend | None] = ContextVar("fastsample_kernels_backend", default=None)


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Force "torch" or "triton" inside the block, in this thread or task; stronger than FASTSAMPLE_KERNELS.

    Raises ValueError for another name, RuntimeError when Triton is forced and missing. Around a call of a compiled
    function, not inside it: the choice is made when the operation runs.
    """
    if name not in ("torch", "triton"):
        raise ValueError(f'backend = {name!r}: give "torch" or "triton"')
    if name == "triton":
        _require_triton(f"use_backend({name!r})")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> Backend | None:
    """What `use_backend` forces here; None outside its blocks. Cheap enough to ask at every step."""
    return _forced.get()


def requested_backend() -> tuple[Backend | None, str]:
    """What is forced, by `use_backend` or else by the environment, and by which of them.

    Raises ValueError for an unknown value in the environment.
    """
    forced = _forced.get()
    if forced is not None:
        return forced, "use_backend"
    value = os.environ.get(VARIABLE, "auto").lower() or "auto"
    if value not in ("auto", "torch", "triton"):
        raise ValueError(f"{VARIABLE} = {value!r}: set it to auto, torch or triton")
    return None if value == "auto" else cast(Backend, value), VARIABLE


def choose_backend(device: torch.device) -> Backend:
    """The backend for tensors on `device`: what is forced, else "triton" on a GPU that has it, else "torch".

    FASTSAMPLE_KERNELS = auto (default), torch or triton forces for the process; `use_backend` inside a block. Raises
    ValueError for another value, RuntimeError when Triton is forced and cannot run there.
    """
    forced, source = requested_backend()
    if forced is None:
        return "triton" if runs_triton(device) and not triton_problem() else "torch"
    if forced == "triton":
        _require_triton(source)
        if not (runs_triton(device) or interpreting()):
            raise RuntimeError(
                f"{source} forces Triton, whose kernels do not run on {device.type} tensors: move them to a GPU, use "
                'the "torch" backend, or set TRITON_INTERPRET=1 before the first import to test'
            )
    return forced


def _require_triton(source: str) -> None:
    if problem := triton_problem():
        raise RuntimeError(f'{source} forces Triton, but {problem}: install triton or use the "torch" backend')
