"""A lowered table's steps as launches of one kernel: the same slots, outputs and dtypes at every step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastsample.sampling.backend import MOST_INPUTS, MOST_OUTPUTS, Stored, WeightedStep, combine_fused
from fastsample.tables.lower import Lowered, LoweredStep

LAUNCH = WeightedStep()
"""Of this process: it remembers what has been compiled, as Triton does."""


def fits(lowered: Lowered) -> bool:
    """Whether a step of `lowered` is narrow enough for one launch."""
    return len(lowered.inputs) <= MOST_INPUTS and 1 + len(lowered.targets) <= MOST_OUTPUTS


class FusedSteps:
    """The steps of `lowered` on `device`, for sums in `dtype`.

    One kernel serves all: a slot that holds nothing has weight 0, which the kernel does not read, so any tensor of
    the right kind stands in for it. Weights go with each launch; what has to be launched by `linear_step` finds them
    in a table on the device.
    """

    def __init__(self, lowered: Lowered, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._inputs, self._made = lowered.inputs, [dtype] * len(lowered.targets)
        self._keeps = [_kept(lowered, step) for step in lowered.steps]
        self._lowered, self._weights = lowered, lowered.weights

    def run(
        self, index: int, sample: Tensor, output: Tensor, stored: Stored, noise: Tensor | None
    ) -> tuple[Tensor, Stored]:
        """Step `index`: the next sample, in `sample`'s dtype, and what is stored then."""
        values = (sample, output, None if noise is None else noise.to(self.dtype), *stored)
        inputs = self._filled([values[place] for place in self._inputs])
        dtypes = [sample.dtype, *self._made]
        sums: Sequence[Tensor] | None = LAUNCH(inputs, self._weights[index], dtypes)
        if sums is None:
            table, indices = self._on_device
            sums = combine_fused(inputs, table, indices[index], dtypes)
        held = (*sums, *stored)
        return sums[0], tuple([None if place is None else held[place] for place in self._keeps[index]])

    @cached_property
    def _on_device(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The table, and the number of each step."""
        table = torch.from_numpy(self._lowered.dense()).to(self.dtype).to(self.device)
        # 16 bytes apart: Triton compiles a kernel anew for pointers of another alignment
        places = torch.arange(len(self._weights)).repeat_interleave(2).to(self.device)
        return table, places.view(-1, 2)[:, :1].unbind()

    def _filled(self, inputs: list[Any]) -> list[Tensor]:
        """`inputs` with one tensor in every slot that holds nothing."""
        for value in inputs:
            if value is None:
                nothing = torch.empty_like(inputs[0], dtype=self.dtype)
                return [nothing if value is None else value for value in inputs]
        return inputs


def _kept(lowered: Lowered, step: LoweredStep) -> list[int | None]:
    """Where what `step` keeps is among its sums, the next sample's first, and after them what was stored before it.

    A new entry goes to the front of the history, and moves the others one place on; states are made anew.
    """
    made, history = 1 + len(lowered.targets), lowered.history
    places = [1, *range(made, made + history - 1)] if history else []
    places += range(1 + bool(history), made)
    return [None if kept is None else place for kept, place in zip(step.keeps, places, strict=True)]
