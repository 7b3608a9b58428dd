"""Noise from the caller's generator, one stream an image."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from fastsample.wording import counted

Generators = torch.Generator | list[torch.Generator] | None
NOISES = ("independent", "brownian")
"""Where the noise of a step comes from: drawn anew, or from a path (:mod:`fastsample.sampling.brownian`)."""


def draw_noise(like: Tensor, generator: Generators = None) -> Tensor:
    """Standard normal noise shaped as `like`, float32 or wider, on its device.

    Streams are those of :func:`draw`.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return draw(functools.partial(torch.randn, dtype=dtype), like, generator)


def draw(kind: Callable[..., Tensor], like: Tensor, generator: Generators = None) -> Tensor:
    """`kind(shape, generator=.., device=..)`, shaped as `like`, on its device.

    A list of generators gives one stream an image, so that an image does not depend on its batch; a CPU
    generator draws on the CPU, so that seeds give the same noise on every device.
    Raises ValueError when a list's length is not the batch size.
    """
    if isinstance(generator, list):
        check_one_each(generator, like.shape[0])
        return torch.cat([draw(kind, like[i : i + 1], own) for i, own in enumerate(generator)])
    device = like.device if generator is None else generator.device
    return kind(like.shape, generator=generator, device=device).to(like.device)


def check_one_each(generators: list[torch.Generator], rows: int) -> None:
    """Raise ValueError unless there is a generator for each of `rows` images."""
    if len(generators) != rows:
        entries = counted(len(generators), "entry", "entries")
        raise ValueError(f"generator has {entries} for a batch of {rows}: give one a batch item")
