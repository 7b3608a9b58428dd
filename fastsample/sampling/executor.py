"""Applying a table to tensors: one step, and a whole trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype, combine
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tables.table import Combination, Step, Table

Model = Callable[[Tensor, float], Tensor]
"""`model(x, t) -> output`, in the table's prediction type; `t` is the node's time."""


@dataclass
class StepState:
    """What a sampler carries from step to step: entries newest first (None: not kept), named states."""

    history: list[Tensor | None] = field(default_factory=list)
    states: dict[str, Tensor] = field(default_factory=dict)


def apply_step(
    step: Step,
    sample: Tensor,
    output: Tensor,
    state: StepState,
    *,
    noise: Tensor | None = None,
    keep: int = 8,
) -> Tensor:
    """The next sample, in `sample`'s dtype; `state` is advanced, its tensors in float32 or wider.

    `noise` is needed when the step's noise weight is not 0. `keep` bounds the history.
    """
    dtype = accumulation_dtype(sample.dtype, output.dtype)

    def apply(c: Combination) -> Tensor:
        weights, tensors = [c.sample, c.output], [sample, output]
        for weight, entry in zip(c.history, state.history, strict=False):
            if weight != 0 and entry is not None:
                weights.append(weight)
                tensors.append(entry)
        for name, weight in c.states.items():
            weights.append(weight)
            tensors.append(state.states[name])
        if c.noise != 0:
            if noise is None:
                raise ValueError(f"noise = None: the step at time {step.node.time:g} needs a noise tensor")
            weights.append(c.noise)
            tensors.append(noise)
        return combine(weights, tensors, dtype)

    entry = apply(step.entry) if step.entry is not None else None
    states = {name: apply(c) for name, c in step.states.items()}
    following = apply(step.next).to(sample.dtype)
    state.history = [entry, *state.history[: keep - 1]]
    state.states.update(states)
    return following


def integrate(
    table: Table, model: Model, x: Tensor, *, generator: Generators = None, progress: bool = False
) -> Tensor:
    """Run `table` over `model` from `x`, the sample at the table's first time; the sample at its last time.

    `x` has any shape, its first dimension the batch, and keeps its dtype; `model(x, t)` returns outputs of
    `table.prediction_type` shaped as `x`. Noise of stochastic tables comes from `generator` (a list: one an
    image). Raises ValueError when an output's shape differs from the sample's.
    """
    from tqdm.auto import tqdm

    state = StepState()
    for step in tqdm(table.steps, disable=not progress, desc=table.solver):
        output = model(x, step.node.time)
        if output.shape != x.shape:
            raise ValueError(
                f"model output has shape {tuple(output.shape)} for a sample of shape {tuple(x.shape)} at time "
                f"{step.node.time:g}: they must be equal"
            )
        noise = draw_noise(x, generator) if step.next.noise else None
        x = apply_step(step, x, output, state, noise=noise, keep=max(1, table.history_length))
    return x
