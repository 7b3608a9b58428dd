"""The only place that asks about devices."""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch

TRITON_MINIMUM = (3, 3)
"""The first Triton whose kernels take tuples of tensors."""


@lru_cache(maxsize=1)
def triton_problem() -> str:
    """Why Triton cannot be used, in one clause; empty when it can. Imports it on the first call."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        import triton  # optional, and slow to load
    except Exception as error:  # a broken install may raise anything
        return f"Triton cannot be imported ({type(error).__name__}: {error})"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < TRITON_MINIMUM:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, TRITON_MINIMUM))}"
    return ""


def interpreting() -> bool:
    """Triton kernels run on the CPU, in its interpreter: for tests. Triton reads the variable at its first import."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def runs_triton(device: torch.device) -> bool:
    """A compiled kernel can run there; ROCm devices are called cuda too."""
    return device.type == "cuda"


@lru_cache
def architecture(device: torch.device) -> str:
    """Key of the block size table: "cuda:90", "hip:gfx942", or "cpu" for the interpreter."""
    if device.type != "cuda":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "hip:" + str(getattr(properties, "gcnArchName", "")).split(":")[0]
    return f"cuda:{properties.major}{properties.minor}"


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 8 in the interpreter, where a program costs as much as its operations."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes `device` the current one where it is not: Triton launches on the current device."""
    if device.type != "cuda" or device.index is None or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
