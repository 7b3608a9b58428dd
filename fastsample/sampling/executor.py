"""Applying a table to tensors: one step, and a whole trajectory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype, combine
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.sampling.program import NEXT, NOISE, OUTPUT, SAMPLE, Instructions, compile_program
from fastsample.tables.table import Table

Model = Callable[[Tensor, float], Tensor]
"""`model(x, t) -> output`, in the table's prediction type; `t` is the node's time."""

Values = dict[str, Tensor]
"""What a sampler carries from step to step, by the program's names, in float32 or wider."""


def run_step(
    instructions: Instructions, sample: Tensor, output: Tensor, values: Values, noise: Tensor | None = None
) -> Tensor:
    """The next sample, in `sample`'s dtype; `values` is advanced. `noise` is needed where it is read."""
    dtype = accumulation_dtype(sample.dtype, output.dtype)
    known = {**values, SAMPLE: sample, OUTPUT: output}
    if noise is not None:
        known[NOISE] = noise
    for assignment in instructions.assignments:
        weights = [weight for _, weight in assignment.terms]
        if noise is None and NOISE in dict(assignment.terms):
            raise ValueError(
                f"noise = None: this step adds noise to a sample of shape {tuple(sample.shape)}; give it"
            )
        tensors = [known[name] for name, _ in assignment.terms] or [sample]
        known[assignment.target] = combine(weights or [0.0], tensors, dtype)
    following = known.pop(NEXT)
    for name in (SAMPLE, OUTPUT, NOISE, *instructions.frees):
        known.pop(name, None)
    values.clear()
    values.update(known)
    return following.to(sample.dtype)


def integrate(
    table: Table, model: Model, x: Tensor, *, generator: Generators = None, progress: bool = False
) -> Tensor:
    """Run `table` over `model` from `x`, the sample at the table's first time; the sample at its last time.

    `x` has any shape, its first dimension the batch, and keeps its dtype; `model(x, t)` returns outputs of
    `table.prediction_type` shaped as `x`. Noise of stochastic tables comes from `generator` (a list: one an
    image). Raises ValueError when an output's shape differs from the sample's.
    """
    from tqdm.auto import tqdm

    values: Values = {}
    program = compile_program(table)
    pairs = list(zip(table.steps, program.steps, strict=True))
    for step, instructions in tqdm(pairs, disable=not progress, desc=table.solver):
        output = model(x, step.node.time)
        if output.shape != x.shape:
            raise ValueError(
                f"model output has shape {tuple(output.shape)} for a sample of shape {tuple(x.shape)} at time "
                f"{step.node.time:g}: they must be equal"
            )
        noise = draw_noise(x, generator) if step.next.noise else None
        x = run_step(instructions, x, output, values, noise)
    return x
