"""What a result depends on: weights, settings, and the machine on which its seconds were measured."""

from __future__ import annotations

import hashlib
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from torch import Tensor, nn

from fastsample.version import __version__


def context_of(modules: Sequence[nn.Module], device: torch.device, *settings: Any) -> str:
    """A hash for the keys of a record: weights and their dtypes, settings, device and threads.

    Seconds can only be compared on the same device with the same number of threads, so both are part of the hash.
    """
    known = (weights_digest(modules), hardware(device), torch.get_num_threads(), *settings)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def weights_digest(modules: Sequence[nn.Module]) -> str:
    """A hash of all parameters and buffers: their names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for module in modules:
        state = module.state_dict()
        if any(isinstance(value, Tensor) and value.is_meta for value in state.values()):
            state = get_state_dict_offloaded_model(module)  # a layer at a time is on the GPU, the rest elsewhere
        for name, value in state.items():
            if isinstance(value, Tensor):
                total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                total.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def modules_of(pipe: Any) -> list[nn.Module]:
    """The models of a diffusers pipeline."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions and hardware of a run on `device`, for every record."""
    return {
        "fastsample": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "device": hardware(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def command() -> str:
    """What was typed to run this process, the program without its folder."""
    program = Path(sys.argv[0])
    name = f"python -m {program.parent.name}" if program.name == "__main__.py" else program.name
    return shlex.join([*([name] if " " not in name else name.split()), *sys.argv[1:]])


def hardware(device: torch.device) -> str:
    """The name of the GPU, or of the processor, that a device is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type.upper()} {processor()}"


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
