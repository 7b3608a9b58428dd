"""The random streams that a pipeline's call draws from, put back to where they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Drawn:
    """How far streams have been drawn from: the call's generators, PyTorch's own on the CPU and on each GPU."""

    given: list[Tensor]
    cpu: Tensor
    cuda: list[Tensor]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Drawn) or (len(self._all), len(self.given)) != (len(other._all), len(other.given)):
            return False
        return all(map(torch.equal, self._all, other._all))

    @property
    def _all(self) -> list[Tensor]:
        return [*self.given, self.cpu, *self.cuda]


class Streams:
    """The generators of a call, one or a list or None, and PyTorch's own of every device."""

    def __init__(self, given: Any) -> None:
        generators = given if isinstance(given, (list, tuple)) else [given]
        self._given = [generator for generator in generators if isinstance(generator, torch.Generator)]

    def state(self) -> Drawn:
        """Where they are."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        return Drawn([generator.get_state() for generator in self._given], torch.get_rng_state(), cuda)

    def restore(self, drawn: Drawn) -> None:
        """Put them where they were."""
        for generator, own in zip(self._given, drawn.given, strict=True):
            generator.set_state(own)
        torch.set_rng_state(drawn.cpu)
        if drawn.cuda:
            torch.cuda.set_rng_state_all(drawn.cuda)
