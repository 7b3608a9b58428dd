"""Applying a table to tensors: one step, and a whole trajectory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype, combine, combine_fused, fuses
from fastsample.sampling.fused import FusedProgram
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.sampling.program import NEXT, NOISE, OUTPUT, SAMPLE, Instructions, Program, compile_program
from fastsample.tables.table import Table

Model = Callable[[Tensor, float], Tensor]
"""`model(x, t) -> output`, in the table's prediction type; `t` is the node's time."""

Values = dict[str, Tensor]
"""What a sampler carries from step to step, by the program's names, in float32 or wider."""


@dataclass
class Runner:
    """Runs a program step by step, and carries its values: in one launch a step where kernels are used."""

    program: Program
    values: Values = field(default_factory=dict)
    _fused: FusedProgram | None = None

    def __copy__(self) -> Runner:
        """The same program and carried values; going on with either leaves the other."""
        return Runner(self.program, dict(self.values), self._fused)

    def step(self, index: int, sample: Tensor, output: Tensor, noise: Tensor | None = None) -> Tensor:
        """The next sample, in `sample`'s dtype. `noise` is needed where step `index` reads it."""
        instructions = self.program.steps[index]
        if not fuses(sample.device):
            return run_step(instructions, sample, output, self.values, noise)
        dtype = accumulation_dtype(sample.dtype, output.dtype)
        if self._fused is None or (self._fused.device, self._fused.dtype) != (sample.device, dtype):
            self._fused = FusedProgram(self.program, sample.device, dtype)
        fused = self._fused.steps[index]
        if fused is None:
            return run_step(instructions, sample, output, self.values, noise)
        known = _known(self.values, sample, output, noise)
        if NOISE in fused.inputs and noise is None:
            raise ValueError(MISSING_NOISE.format(tuple(sample.shape)))
        dtypes = [sample.dtype, *[dtype] * (len(fused.targets) - 1)]
        made = combine_fused([known[name] for name in fused.inputs], fused.table, fused.index, dtypes)
        _keep(self.values, dict(zip(fused.targets, made, strict=True)), instructions)
        return made[0]


def run_step(
    instructions: Instructions, sample: Tensor, output: Tensor, values: Values, noise: Tensor | None = None
) -> Tensor:
    """The next sample by torch, in `sample`'s dtype; `values` is advanced. `noise` is needed where it is read."""
    dtype = accumulation_dtype(sample.dtype, output.dtype)
    known = _known(values, sample, output, noise)
    made: Values = {}
    for assignment in instructions.assignments:
        weights = [weight for _, weight in assignment.terms]
        if noise is None and NOISE in dict(assignment.terms):
            raise ValueError(MISSING_NOISE.format(tuple(sample.shape)))
        tensors = [known[name] for name, _ in assignment.terms] or [sample]
        made[assignment.target] = known[assignment.target] = combine(weights or [0.0], tensors, dtype)
    _keep(values, made, instructions)
    return made[NEXT].to(sample.dtype)


MISSING_NOISE = "noise = None: this step adds noise to a sample of shape {}; give it"


def _known(values: Values, sample: Tensor, output: Tensor, noise: Tensor | None) -> Values:
    """What a step can read."""
    known = {**values, SAMPLE: sample, OUTPUT: output}
    return known if noise is None else {**known, NOISE: noise}


def _keep(values: Values, made: Values, instructions: Instructions) -> None:
    """Store what a step made, and drop what nobody reads again."""
    values.update((name, value) for name, value in made.items() if name != NEXT)
    for name in instructions.frees:
        values.pop(name, None)


def integrate(
    table: Table, model: Model, x: Tensor, *, generator: Generators = None, progress: bool = False
) -> Tensor:
    """Run `table` over `model` from `x`, the sample at the table's first time; the sample at its last time.

    `x` has any shape, its first dimension the batch, and keeps its dtype; `model(x, t)` returns outputs of
    `table.prediction_type` shaped as `x`. Noise of stochastic tables comes from `generator` (a list: one an
    image). Raises ValueError when an output's shape differs from the sample's.
    """
    from tqdm.auto import tqdm

    runner = Runner(compile_program(table))
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
