"""How a pipeline turns the scheduler's timestep into the argument of its denoiser: found by trying, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

Formula = Callable[[Tensor, float], Tensor]

FORMULAS: dict[str, Formula] = {
    "t": lambda t, count: t,
    "t / T": lambda t, count: t / count,
    "1 - t / T": lambda t, count: 1 - t / count,
    "T - t": lambda t, count: count - t,
    "(T - t) / T": lambda t, count: (count - t) / count,
    "t - 1": lambda t, count: t - 1,
    "T (t / T)": lambda t, count: (t / count) * count,
}
"""What pipelines do with a timestep t of a model trained on T of them."""


@dataclass
class TimestepConversion:
    """The conversions that are left; the first one, which `apply` uses, agrees with all that was `seen`.

    A pipeline may cast before it computes, which rounds differently, so that every order is a candidate.
    """

    train_steps: float
    _pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # timesteps, and what they became
    _left: list[tuple[str, torch.dtype | None]] = field(default_factory=list)
    _fresh: bool = True

    def seen(self, timestep: Tensor, argument: Tensor) -> bool:
        """Take note that `timestep` became `argument` (all its elements equal); False when nothing explains it."""
        if self._fresh:
            casts = dict.fromkeys([None, argument.dtype, torch.float32, torch.float64, torch.float16, torch.bfloat16])
            self._left = [(name, cast) for name in FORMULAS for cast in casts]
            self._fresh = False
        self._pairs.append((timestep, argument))
        while self._left:
            if self._explains(self._left[0], timestep, argument):
                return True
            self._left = [key for key in self._left[1:] if all(self._explains(key, *pair) for pair in self._pairs)]
        return False

    def apply(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """What the pipeline would give its denoiser for each of `timesteps`, in `dtype`."""
        return self._convert(self._left[0], timesteps, dtype)

    def _explains(self, key: tuple[str, torch.dtype | None], timestep: Tensor, argument: Tensor) -> bool:
        return torch.equal(argument, self._convert(key, timestep, argument.dtype).expand_as(argument))

    def _convert(self, key: tuple[str, torch.dtype | None], timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        name, cast = key
        value = timesteps if cast is None else timesteps.to(cast)
        return FORMULAS[name](value, self.train_steps).to(dtype)
