"""Other block sizes than those of fastsample_kernels.blocks, timed by shape."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product

import torch
from fastsample_kernels import blocks, use_backend
from fastsample_kernels._device import architecture

from gpu_parts import Part, Record, Setting
from gpu_parts.cases import Case, mix_case, token_case, weighted_case
from gpu_parts.timing import DEVICE, spread, times

CANDIDATES: dict[str, list[blocks.Config]] = {
    "linear_step": [{"block": block, "warps": warps} for block, warps in ((128, 1), (512, 4), (1024, 8), (2048, 8))],
    "triangular_mix": [
        {"rows": rows, "columns": columns, "warps": warps}
        for rows, columns, warps in (
            (8, 256, 2),
            (8, 256, 1),
            (8, 128, 1),
            (8, 512, 2),
            (8, 512, 4),
            (4, 256, 1),
            (4, 512, 2),
            (16, 128, 1),
        )
    ],
    "token_statistics": [
        {"block": block, "warps": warps, "chunk": chunk}
        for (block, warps), chunk in product(((1024, 4), (1024, 2), (2048, 4), (4096, 8)), (4096, 8192, 16384))
    ],
}


@contextmanager
def block_sizes(operation: str, sizes: blocks.Config) -> Iterator[None]:
    """Block sizes for the calls inside, through the file a user would name."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({architecture(DEVICE): {operation: sizes}}, file)
        file.flush()
        os.environ[blocks.VARIABLE] = file.name
        blocks.forget()
        try:
            yield
        finally:
            del os.environ[blocks.VARIABLE]
            blocks.forget()


def shapes(smoke: bool) -> dict[str, list[Case]]:
    """What each operation is timed on."""
    if smoke:
        return {
            "linear_step": [weighted_case("tiny", (2, 48), 1)],
            "triangular_mix": [mix_case("N 3", 3, 64)],
            "token_statistics": [token_case("1 x 5000", 1, 5000, torch.bfloat16)],
        }
    latents = {"SD1.5": (1, 4, 64, 64), "SDXL": (1, 4, 128, 128), "Flux": (1, 4096, 64), "16 MiB": (1, 8 << 20)}
    mixes = ((8, 1 << 16), (16, 1 << 18), (32, 1 << 16), (64, 1 << 18))
    tokens = ((1, 126464), (32, 126464), (256, 126464), (1024, 151936))
    return {
        "linear_step": [weighted_case(name, shape, 2) for name, shape in latents.items()],
        "triangular_mix": [mix_case(f"N {N}, {size} columns", N, size) for N, size in mixes],
        "token_statistics": [token_case(f"{rows} x {V}", rows, V, torch.bfloat16) for rows, V in tokens],
    }


def tune(setting: Setting) -> Iterator[Record]:
    """Each candidate right, then timed, on each shape."""
    with use_backend("triton"):
        for operation, chosen in shapes(setting.smoke).items():
            for sizes in CANDIDATES[operation][: 2 if setting.smoke else None]:
                with block_sizes(operation, sizes):
                    for case in chosen:
                        case.check()
                        found = spread(times(case.kernel, setting.repeats), "us")
                        yield {"operation": operation, "case": case.name, "sizes": str(sizes), **found}


PART = Part("blocks", "Which block sizes are fastest, by shape?", 60, tune, ("operation", "case", "sizes", "us"))
