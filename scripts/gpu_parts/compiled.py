"""What the compiler made of the kernels: registers, spills, and how wide they load."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fastsample_kernels import use_backend
from ptx import loads

from gpu_parts import Part, Record, Setting
from gpu_parts.cases import cases


def compiled(setting: Setting) -> Iterator[Record]:
    """Every kernel that the cases launch, once."""
    from triton.runtime.jit import JITFunction

    seen: dict[int, tuple[str, Any]] = {}
    launch = JITFunction.run

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        kernel = launch(self, *arguments, **options)
        seen.setdefault(id(kernel), (self.fn.__name__, kernel))
        return kernel

    JITFunction.run = noted
    try:
        with use_backend("triton"):
            for case in cases(smoke=setting.smoke):
                before = len(seen)
                case.kernel()
                torch.cuda.synchronize()
                for name, kernel in list(seen.values())[before:]:
                    yield {"operation": case.operation, "case": case.name, "kernel": name, **resources(kernel)}
    finally:
        JITFunction.run = launch


def resources(kernel: Any) -> Record:
    return {
        "registers": kernel.n_regs,
        "spills": kernel.n_spills,
        "loads": loads(kernel.asm["ptx"]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
    }


COLUMNS = ("operation", "case", "kernel", "warps", "registers", "spills", "loads", "shared")
PART = Part("compiled", "What has the compiler made of the kernels?", 20, compiled, COLUMNS, ("gpu",))
