"""What a launch costs the host, and what the compiler makes of the kernels, without a GPU: two Markdown tables.

    OMP_NUM_THREADS=1 python scripts/benchmark_launch.py

The kernels are compiled for compute capability 9.0 and their launches do nothing; torch's own operations run on the
CPU. `scripts/gpu --parts host,compiled` measures the same on a GPU. Needs triton.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before the kernels are imported

import mocked_driver

mocked_driver.install()

import torch  # noqa: E402
import triton  # noqa: E402
from fastsample_kernels import Gumbel, WeightedStep, linear_step, token_statistics, triangular_mix  # noqa: E402
from gpu_parts import Setting  # noqa: E402
from gpu_parts.steps import host  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from fastsample.bench.report import markdown_table  # noqa: E402

Compiled = tuple[str, str, Any]
"""What was called, the kernel's name, and the kernel."""


def compiled_kernels() -> Iterator[Compiled]:
    """The kernels as they are launched for large tensors."""
    single, half, size = torch.float32, torch.bfloat16, 1 << 20
    seen: list[tuple[str, Any]] = []
    launch = JITFunction.run

    def noted(self: Any, *arguments: Any, **options: Any) -> Any:
        kernel = launch(self, *arguments, **options)
        seen.append((self.fn.__name__, kernel))
        return kernel

    def zeros(*shape: int, dtype: torch.dtype = single) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def step(count: int, dtype: torch.dtype) -> None:
        given = [zeros(size, dtype=dtype), zeros(size, dtype=dtype), *[zeros(size)] * (count - 2)]
        WeightedStep()(given, (1.0,) * 2 * count, (dtype, single))

    def tokens(dtype: torch.dtype, gumbel: Gumbel | None = None) -> None:
        token_statistics(zeros(600, 32000, dtype=dtype), gumbel=gumbel)

    def mix(dtype: torch.dtype) -> None:
        triangular_mix(zeros(32), zeros(size, dtype=dtype), zeros(32, 32), zeros(32, size, dtype=dtype))

    noise = Gumbel(torch.ones(()), torch.tensor(1), torch.tensor(0))
    calls = {
        "step of 3 float32": lambda: step(3, single),
        "step of 3, sample in bfloat16": lambda: step(3, half),
        "step of 10, sample in bfloat16": lambda: step(10, half),
        "step by a table on the device": lambda: linear_step(
            [zeros(size)] * 3, zeros(20, 2, 3), torch.tensor(0), dtypes=(single,) * 2
        ),
        "token statistics of bfloat16": lambda: tokens(half),
        "token statistics of bfloat16, Gumbel": lambda: tokens(half, noise),
        "32 rows of float32": lambda: mix(single),
        "32 rows of bfloat16": lambda: mix(half),
    }
    JITFunction.run = noted
    try:
        for name, call in calls.items():
            seen.clear()
            call()
            for kernel_name, kernel in seen:
                yield name, kernel_name, kernel
    finally:
        JITFunction.run = launch


def main() -> None:
    """Measure, and print Markdown."""
    print(f"torch {torch.__version__}, triton {triton.__version__}, {torch.get_num_threads()} thread(s)\n")
    with torch.no_grad():
        rows = [
            [r["part"], f"{r['us']} ({r['us_q1']}, {r['us_q3']})"] for r in host(Setting(smoke=False, repeats=30))
        ]
    print(markdown_table(["part", "us (quartiles)"], rows))
    names = ["registers", "stack", "loads", "shared"]
    rows = []
    for call, kernel_name, kernel in compiled_kernels():
        found = mocked_driver.resources(kernel)
        rows.append([call, kernel_name, str(kernel.metadata.num_warps), *(str(found[name]) for name in names)])
    print(markdown_table(["call", "kernel", "warps", *names], rows))


if __name__ == "__main__":
    main()
