"""The random streams that a pipeline's call draws from, put back to where they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Drawn:
    """How far streams have been drawn from: a call's generators, or PyTorch's own on the CPU and on each GPU."""

    own: list[Tensor]
    cuda: list[Tensor]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Drawn) or (len(self.own), len(self.cuda)) != (len(other.own), len(other.cuda)):
            return False
        return all(map(torch.equal, [*self.own, *self.cuda], [*other.own, *other.cuda]))


class Streams:
    """The generators of a call, one or a list, or without any PyTorch's own of every device.

    PyTorch's own are of all threads, so that they are left alone where a call has its own.
    """

    def __init__(self, given: Any) -> None:
        generators = given if isinstance(given, (list, tuple)) else [given]
        self._given = [generator for generator in generators if isinstance(generator, torch.Generator)]

    @property
    def shared(self) -> bool:
        """Whether they are PyTorch's own."""
        return not self._given

    def state(self) -> Drawn:
        """Where they are."""
        if not self.shared:
            return Drawn([generator.get_state() for generator in self._given], [])
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        return Drawn([torch.get_rng_state()], cuda)

    def restore(self, drawn: Drawn) -> None:
        """Put them where they were."""
        if self.shared:
            torch.set_rng_state(drawn.own[0])
        for generator, own in zip(self._given, drawn.own, strict=False):
            generator.set_state(own)
        if drawn.cuda:
            torch.cuda.set_rng_state_all(drawn.cuda)
