"""Which model a pipeline has: a hash of its denoisers' weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from fastsample.pipelines.denoisers import denoisers

READ = 256
"""Elements of each tensor that the hash reads, evenly spread: a model of billions is read in a second."""


def fingerprint(pipe: Any) -> str:
    """A hash of the names, shapes, dtypes and some elements of the weights of all denoisers of `pipe`."""
    total = hashlib.sha256()
    for denoiser in denoisers(pipe):
        for name, value in denoiser.module.state_dict().items():
            if isinstance(value, Tensor) and value.device.type != "meta":
                total.update(f"{denoiser.name} {name} {value.dtype} {tuple(value.shape)}".encode())
                flat = value.detach().reshape(-1)
                some = flat[:: max(1, len(flat) // READ)].cpu().contiguous()
                total.update(some.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]
