"""A GPU of compute capability 9.0 that is not there: kernels are compiled for it, and their launches only recorded.

For host time and for what the compiler makes of a kernel, on a machine without a GPU. Import it before
`fastsample_kernels`, without TRITON_INTERPRET: tensors on the CPU then stand for the device's.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from typing import Any

from ptx import loads
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

LAUNCHES: list[tuple[str, int, int, tuple[Any, ...]]] = []
"""Kernel's name, programs, stream and arguments of each launch, where `record` is on."""


class Launcher:
    """Takes the place of the C function that enqueues a kernel."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        if driver.active.record:
            LAUNCHES.append((self.name, x * y * z, stream, rest[4:]))


class Utilities:
    """Loading a binary is nothing; a device has what an H100 has."""

    get_device_properties = staticmethod(lambda device: {"max_shared_mem": 232448})
    load_binary = staticmethod(lambda *_: (1, 1, 32, 0, 1024))
    unload_module = staticmethod(lambda module: None)


class Driver:
    """What Triton asks of a driver. `device` and `stream` are those that are current."""

    launcher_cls, utils = Launcher, Utilities
    record, device, stream = False, 0, 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int = 0) -> int:
        return self.stream


def install() -> Driver:
    """Makes it Triton's driver, and CPU tensors pass for tensors on a GPU."""
    from fastsample_kernels import _device, dispatch

    active = Driver()
    driver.set_active(active)
    dispatch.runs_triton = lambda device: True
    _device.processors.cache_clear()
    return active


def resources(kernel: Any) -> dict[str, Any]:
    """Of a compiled kernel: registers and bytes of stack a thread, loads and their widths, bytes of shared memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+)", said), re.search(r"STACK:(\d+)", said)
    assert registers is not None
    assert stack is not None
    return {
        "registers": int(registers[1]),
        "stack": int(stack[1]),
        "loads": loads(kernel.asm["ptx"]),
        "shared": kernel.metadata.shared,
    }
