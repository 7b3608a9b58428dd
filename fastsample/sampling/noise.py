"""Noise from the caller's generator, one stream an image."""

from __future__ import annotations

import torch
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


def draw_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise shaped as `like`, float32 or wider, on its device.

    A list of generators gives one stream an image, so that an image does not depend on its batch; a CPU
    generator draws on the CPU, so that seeds give the same noise on every device.
    Raises ValueError when a list's length is not the batch size.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if isinstance(generator, list):
        if len(generator) != like.shape[0]:
            raise ValueError(
                f"generator has {len(generator)} entries for a batch of {like.shape[0]}: give one a batch item"
            )
        return torch.cat([draw_noise(like[i : i + 1], own) for i, own in enumerate(generator)])
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=dtype, device=device).to(like.device)
