"""Applying a table to tensors: one step, and a whole trajectory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from fastsample.sampling.backend import FEW, SMALL, Stored, accumulation_dtype, add_up, forced_backend, fuses
from fastsample.sampling.brownian import BrownianPath
from fastsample.sampling.fused import FusedSteps, fits
from fastsample.sampling.noise import NOISES, Generators, draw_noise
from fastsample.solvers.registry import check_choice
from fastsample.tables.lower import SAMPLE, LoweredStep
from fastsample.tables.spans import noise_spans
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
        self._light = self.lowered.operations <= FEW
        self._choice: tuple[torch.device, str | None, bool, bool] | None = None

    def __copy__(self) -> Runner:
        """At the same point; what was compiled is shared."""
        twin = Runner.__new__(Runner)
        twin.__dict__.update(self.__dict__)
        return twin

    def step(self, index: int, sample: Tensor, output: Tensor, noise: Tensor | None = None) -> Tensor:
        """The next sample, in `sample`'s dtype. Raises ValueError where step `index` adds `noise` and has none."""
        step = self.lowered.steps[index]
        if step.noisy and noise is None:
            raise ValueError(
                f"noise = None: this step adds noise to a sample of shape {tuple(sample.shape)}; give it"
            )
        if self._fits and self._fuses(sample):
            fused = self._fused_for(sample, output)
            new, self.stored = fused.run(index, sample, output, self.stored, noise)
        else:
            new, self.stored = run_step(step, sample, output, self.stored, noise)
        return new

    def prepare(self, sample: Tensor) -> None:
        """Compile the one kernel of all steps, for samples and outputs like `sample`, where kernels are used."""
        if self._fits and self._fuses(sample):
            self._fused_for(sample, sample).run(0, sample, sample, self.lowered.empty, sample)

    def _fuses(self, sample: Tensor) -> bool:
        """As :func:`fuses`, asked again when the device changes, or what is light, or what is forced."""
        device, forced = sample.device, forced_backend()
        light = self._light and sample.dtype == torch.float32 and sample.numel() <= SMALL
        if self._choice is None or self._choice[:3] != (device, forced, light):
            self._choice = device, forced, light, fuses(device, light=light)
        return self._choice[3]

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
    new = None if sample.dtype == dtype else torch.empty_like(sample)
    if new is not None and _worth_blocks(values):
        made = [torch.empty_like(sample, dtype=dtype) for _ in step.sums[1:]]
        _run_blocks(step, values, made, new, dtype)
        values += [*made, new]
    else:
        for total in step.sums[:-1]:
            values.append(add_up(total, values, dtype))
        values.append(add_up(step.sums[-1], values, dtype, new))
    return values[-1], tuple([None if place is None else values[place] for place in step.keeps])


def _worth_blocks(values: Sequence[Any]) -> bool:
    """Whether sums of `values` are better made block by block: large ones on the CPU, which lie in one order."""
    sample = values[SAMPLE]
    if sample.device.type != "cpu" or sample.numel() < 4 * BLOCK * torch.get_num_threads():
        return False
    held = [value for value in values if value is not None]
    graph = torch.is_grad_enabled() and any(value.requires_grad for value in held)
    return not graph and all(value.is_contiguous() and value.shape == sample.shape for value in held)


def _run_blocks(
    step: LoweredStep, values: Sequence[Any], made: list[Tensor], new: Tensor, dtype: torch.dtype
) -> None:
    """Write what `step` makes of `values` to `made` and `new`, a block at a time; what is narrow is cast once."""
    size, given = BLOCK * torch.get_num_threads(), len(values)
    wide = torch.empty(size, dtype=dtype)  # a block of the next sample, before it is rounded
    parts = [repeat(None) if value is None else value.view(-1).split(size) for value in (*values, *made, new)]
    for *block, rounded in zip(*parts, strict=False):
        places = [value if value is None else value.to(dtype) for value in block]
        places.append(wide[: len(rounded)])
        for total, out in zip(step.sums, places[given:], strict=True):
            add_up(total, places, dtype, out)
        rounded.copy_(places[-1])


def integrate(
    table: Table,
    model: Model,
    x: Tensor,
    *,
    generator: Generators = None,
    noise: str = "independent",
    progress: bool = False,
) -> Tensor:
    """Run `table` over `model` from `x`, the sample at the table's first time; the sample at its last time.

    `x` has any shape, its first dimension the batch, and keeps its dtype; `model(x, t)` returns outputs of
    `table.prediction_type` shaped as `x`. Noise of stochastic tables comes from `generator` (a list: one an
    image): drawn anew at each step, or, with `noise` "brownian", the increments of one path, to which the generator
    gives a seed, so that any number of steps follows the same path.
    Raises ValueError when an output's shape differs from the sample's.
    """
    from tqdm.auto import tqdm  # notebook widgets, which a step of a pipeline does without

    check_choice("noise", noise, NOISES)
    runner = Runner(table)
    runner.prepare(x)
    path = BrownianPath.drawn(len(x), generator) if table.stochastic and noise == "brownian" else None
    spans = noise_spans(table) if path else ()
    for index, step in enumerate(tqdm(table.steps, disable=not progress, desc=table.solver)):
        output = model(x, step.node.time)
        if output.shape != x.shape:
            raise ValueError(
                f"model output has shape {tuple(output.shape)} for a sample of shape {tuple(x.shape)} at time "
                f"{step.node.time:g}: they must be equal"
            )
        drawn = None
        if runner.lowered.steps[index].noisy:
            drawn = path.noise(x, *spans[index]) if path else draw_noise(x, generator)
        x = runner.step(index, x, output, drawn)
    return x
