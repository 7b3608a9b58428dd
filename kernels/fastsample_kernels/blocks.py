"""Block sizes, fixed per architecture: nothing is tuned while sampling.

Why these. The kernels are bound by memory, so a thread should have a few 16-byte loads in flight, and no more
registers (REGISTERS) than let several programs share a multiprocessor:

- linear_step: 1024 elements over 8 warps are 4 a thread whatever the dtype: one 16-byte float32 load or one 8-byte
  half an input. More for the halves would need float32 sums moved between threads wherever dtypes are mixed. Eight
  programs share a multiprocessor. Programs are smaller, 4 elements a thread still, where there would be fewer of them
  than multiprocessors.
- triangular_mix: 8 rows by 256 columns over 2 warps are 32 sums a thread, and 8 programs share a multiprocessor. M is
  read once for 8 rows, again for each further 8, mostly from L2; 16 rows take a quarter longer on an H100.
- token_statistics: 1024 logits over 4 warps are 8 a thread, one 16-byte bfloat16 load and one ahead, with five
  running values each: 5 programs a multiprocessor, 4 with Gumbel noise. `chunk` is the least a program reads when a
  row is split: below it the second stage costs more than it saves.

`scripts/gpu --parts blocks` measures others. blocks.json has those of an architecture that differ, and is read once;
the file named by FASTSAMPLE_KERNEL_BLOCKS is read on top of it.
"""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

import torch

from fastsample_kernels._device import architecture

VARIABLE = "FASTSAMPLE_KERNEL_BLOCKS"
Config = dict[str, int]

DEFAULTS: dict[str, Config] = {
    "linear_step": {"block": 1024, "warps": 8},
    "triangular_mix": {"rows": 8, "columns": 256, "warps": 2},
    "token_statistics": {"block": 1024, "warps": 4, "chunk": 8192},
}

REGISTERS = {"linear_step": 32, "triangular_mix": 128, "token_statistics": 96, "token_statistics, Gumbel": 128}
"""The most that a thread needs at these sizes, compiled for compute capability 9.0; there are 65536."""


@lru_cache
def block_config(operation: str, device: torch.device) -> Config:
    """The sizes for `operation` on `device`. Raises ValueError for a file that names an unknown operation or size."""
    return {**DEFAULTS[operation], **_tuned().get(architecture(device), {}).get(operation, {})}


def step_block(size: int, rows: int, device: torch.device, multiprocessors: int) -> tuple[int, int]:
    """Elements and warps of a program of linear_step, for `rows` of `size`: fewer where they would fill no device.

    A thread keeps its number of elements, so that loads stay as wide.
    """
    config = block_config("linear_step", device)
    block, warps = config["block"], config["warps"]
    while warps > 1 and rows * -(-size // block) < multiprocessors:
        block, warps = block // 2, warps // 2
    return block, warps


def forget() -> None:
    """Read the files again at the next call: for tuning."""
    _tuned.cache_clear()
    block_config.cache_clear()


@lru_cache(maxsize=1)
def _tuned() -> dict[str, dict[str, Config]]:
    """By architecture and operation, what blocks.json and the user's file say."""
    tuned: dict[str, dict[str, Config]] = {}
    for path in (Path(__file__).with_name("blocks.json"), os.environ.get(VARIABLE)):
        for name, operations in json.loads(Path(path).read_text()).items() if path else ():
            for operation, sizes in operations.items():
                if operation not in DEFAULTS or not set(sizes) <= set(DEFAULTS[operation]):
                    raise ValueError(f"{path}: {operation} {sizes} for {name} is not one of {DEFAULTS}")
                tuned.setdefault(name, {}).setdefault(operation, {}).update(sizes)
    return tuned
