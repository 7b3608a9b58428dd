"""A lowered table's steps as launches of one kernel: the same slots, outputs and dtypes at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from fastsample.sampling.backend import MOST_INPUTS, MOST_OUTPUTS, Stored, combine_fused
from fastsample.tables.lower import Lowered


def fits(lowered: Lowered) -> bool:
    """Whether a step of `lowered` is narrow enough for one launch."""
    return len(lowered.inputs) <= MOST_INPUTS and 1 + len(lowered.targets) <= MOST_OUTPUTS


class FusedSteps:
    """The steps of `lowered` with their coefficients on `device`, uploaded at once, for sums in `dtype`.

    One kernel serves all: a slot that holds nothing has weight 0, which the kernel does not read, so any tensor of
    the right kind stands in for it.
    """

    def __init__(self, lowered: Lowered, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._steps, self._inputs, self._history = lowered.steps, lowered.inputs, lowered.history
        self._made = [dtype] * len(lowered.targets)
        self._table = torch.from_numpy(lowered.dense()).to(dtype).to(device)
        # 16 bytes apart: Triton compiles a kernel anew for pointers of another alignment
        places = torch.arange(len(lowered.steps)).repeat_interleave(2).to(device)
        self._indices = places.view(-1, 2)[:, :1].unbind()

    def run(
        self, index: int, sample: Tensor, output: Tensor, stored: Stored, noise: Tensor | None
    ) -> tuple[Tensor, Stored]:
        """Step `index`: the next sample, in `sample`'s dtype, and what is stored then."""
        values = [sample, output, None if noise is None else noise.to(self.dtype), *stored]
        inputs = [values[place] for place in self._inputs]
        dtypes = [sample.dtype, *self._made]
        new, *made = combine_fused(self._filled(inputs), self._table, self._indices[index], dtypes)
        kept: list[Tensor | None] = [*made[:1], *stored[: self._history - 1], *made[1:]] if self._history else [*made]
        keeps = self._steps[index].keeps
        return new, tuple([None if place is None else value for place, value in zip(keeps, kept, strict=True)])

    def _filled(self, inputs: list[Tensor | None]) -> list[Tensor]:
        """`inputs` with one tensor in every slot that holds nothing."""
        held = [value for value in inputs if value is not None]
        if len(held) == len(inputs):
            return held
        nothing = torch.empty_like(held[0], dtype=self.dtype)
        return [nothing if value is None else value for value in inputs]
