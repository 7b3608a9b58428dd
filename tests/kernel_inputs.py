"""What the kernels' tests share: where they run, and with what numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 0.5 if DEVICE == "cuda" else 1.0  # Triton's interpreter truncates float32 -> bfloat16
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Seeded normal numbers times `scale`, on the device."""
    generator = torch.Generator().manual_seed(seed + math.prod(shape))
    return (scale * torch.randn(shape, generator=generator)).to(DEVICE, dtype)
