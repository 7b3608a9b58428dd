"""Applying a table to tensors: one step, and a whole trajectory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from fastsample.sampling.backend import Stored, accumulation_dtype, add_up, fuses
from fastsample.sampling.fused import FusedSteps, fits
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tables.lower import SAMPLE, LoweredStep
from fastsample.tables.table import Table

Model = Callable[[Tensor, float], Tensor]
"""`model(x, t) -> output`, in the table's prediction type; `t` is the node's time."""

BLOCK = 65536
"""Elements of a thread's block, whose sums stay in its cache between operations."""


class Runner:
    """Runs a table step by step, and carries what later steps read: in one launch a step where kernels are used.

    `stored` is never changed in place: keep it to come back to this point; a copy of the runner goes its own way.
    """

    def __init__(self, table: Table) -> None:
        self.lowered = table.lowered
        self.stored: Stored = self.lowered.empty
        self._fits = fits(self.lowered)
        self._fused: FusedSteps | None = None

    def step(self, index: int, sample: Tensor, output: Tensor, noise: Tensor | None = None) -> Tensor:
        """The next sample, in `sample`'s dtype. Raises ValueError where step `index` adds `noise` and has none."""
        step = self.lowered.steps[index]
        if step.noisy and noise is None:
            raise ValueError(
                f"noise = None: this step adds noise to a sample of shape {tuple(sample.shape)}; give it"
            )
        if self._fits and fuses(sample.device):
            fused = self._fused_for(sample, output)
            new, self.stored = fused.run(index, sample, output, self.stored, noise)
        else:
            new, self.stored = run_step(step, sample, output, self.stored, noise)
        return new

    def prepare(self, sample: Tensor) -> None:
        """Compile the one kernel of all steps, for samples and outputs like `sample`, where kernels are used."""
        if self._fits and fuses(sample.device):
            self._fused_for(sample, sample).run(0, sample, sample, self.lowered.empty, sample)

    def _fused_for(self, sample: Tensor, output: Tensor) -> FusedSteps:
        device, dtype = sample.device, accumulation_dtype(sample.dtype, output.dtype)
        if self._fused is None or (self._fused.device, self._fused.dtype) != (device, dtype):
            self._fused = FusedSteps(self.lowered, device, dtype)
        return self._fused


def run_step(
    step: LoweredStep, sample: Tensor, output: Tensor, stored: Stored, noise: Tensor | None = None
) -> tuple[Tensor, Stored]:
    """The next sample by torch, in `sample`'s dtype, and what is stored then. `noise` where the step reads it."""
    dtype = accumulation_dtype(sample.dtype, output.dtype)
    values: list[Any] = [sample, output, noise, *stored]  # no sum reads what is None
    new: Tensor | None = None
    if sample.dtype != dtype:
        if torch.is_grad_enabled() and any(value.requires_grad for value in values if value is not None):
            # what writes to a given tensor has no gradient
            wide, stored = run_step(step, sample.to(dtype), output, stored, noise)
            return wide.to(sample.dtype), stored
        new = torch.empty_like(sample)
    if new is not None and _worth_blocks(values):
        values += [*(torch.empty_like(sample, dtype=dtype) for _ in step.sums[1:]), new]
        for block in _blocks(values):
            for total, out in zip(step.sums, block[-len(step.sums) :], strict=True):
                add_up(total, block, dtype, out)
    else:
        *others, last = step.sums
        for total in others:
            values.append(add_up(total, values, dtype))
        values.append(add_up(last, values, dtype, new))
    return values[-1], tuple([None if place is None else values[place] for place in step.keeps])


def _worth_blocks(values: Sequence[Any]) -> bool:
    """Whether sums of `values` are better made block by block: large ones on the CPU, which lie in one order."""
    sample = values[SAMPLE]
    large = sample.device.type == "cpu" and sample.numel() >= 4 * BLOCK * torch.get_num_threads()
    return large and all(v.is_contiguous() and v.shape == sample.shape for v in values if v is not None)


def _blocks(values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The same stretch of all values, one after the other."""
    size = BLOCK * torch.get_num_threads()
    return zip(*(repeat(None) if value is None else value.view(-1).split(size) for value in values), strict=False)


def integrate(
    table: Table, model: Model, x: Tensor, *, generator: Generators = None, progress: bool = False
) -> Tensor:
    """Run `table` over `model` from `x`, the sample at the table's first time; the sample at its last time.

    `x` has any shape, its first dimension the batch, and keeps its dtype; `model(x, t)` returns outputs of
    `table.prediction_type` shaped as `x`. Noise of stochastic tables comes from `generator` (a list: one an
    image). Raises ValueError when an output's shape differs from the sample's.
    """
    from tqdm.auto import tqdm

    runner = Runner(table)
    runner.prepare(x)
    for index, step in enumerate(tqdm(table.steps, disable=not progress, desc=table.solver)):
        output = model(x, step.node.time)
        if output.shape != x.shape:
            raise ValueError(
                f"model output has shape {tuple(output.shape)} for a sample of shape {tuple(x.shape)} at time "
                f"{step.node.time:g}: they must be equal"
            )
        noise = draw_noise(x, generator) if step.next.noise else None
        x = runner.step(index, x, output, noise)
    return x
