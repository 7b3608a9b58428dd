"""The random streams that a pipeline's call draws from, put back to where they were."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Streams:
    """The generators of a call, one or a list or None, and PyTorch's own of every device."""

    def __init__(self, given: Any) -> None:
        generators = given if isinstance(given, (list, tuple)) else [given]
        self._given = [generator for generator in generators if isinstance(generator, torch.Generator)]

    def state(self) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Where they are."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        return [generator.get_state() for generator in self._given], torch.get_rng_state(), cuda

    def restore(self, state: tuple[list[Tensor], Tensor, list[Tensor]]) -> None:
        """Put them where they were."""
        given, cpu, cuda = state
        for generator, own in zip(self._given, given, strict=True):
            generator.set_state(own)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
