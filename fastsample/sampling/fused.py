"""A program's steps as single launches: each step's assignments as one matrix over what the step reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.sampling.backend import MOST_INPUTS, MOST_OUTPUTS
from fastsample.sampling.program import NEXT, Instructions, Program, Terms


@dataclass(frozen=True)
class FusedStep:
    """`targets[j] = sum_i table[0, j, i] * inputs[i]`; the table is on the device."""

    targets: tuple[str, ...]
    inputs: tuple[str, ...]
    table: Tensor
    index: Tensor  # 0, on the device


class FusedProgram:
    """The steps of `program` with their coefficients on `device`, uploaded at once; None where a step is too wide."""

    def __init__(self, program: Program, device: torch.device, dtype: torch.dtype) -> None:
        matrices = [_matrix(instructions) for instructions in program.steps]
        flat = [weight for _, _, rows in matrices for row in rows for weight in row]
        coefficients = torch.tensor(flat, dtype=dtype).to(device)
        index = torch.zeros(1, dtype=torch.int64, device=device)
        self.device, self.dtype = device, dtype
        self.steps: list[FusedStep | None] = []
        start = 0
        for targets, inputs, rows in matrices:
            size = len(rows) * len(inputs)
            table = coefficients[start : start + size].view(1, len(rows), len(inputs))
            start += size
            fits = len(targets) <= MOST_OUTPUTS and len(inputs) <= MOST_INPUTS
            self.steps.append(FusedStep(targets, inputs, table, index) if fits else None)


def _matrix(instructions: Instructions) -> tuple[tuple[str, ...], tuple[str, ...], list[list[float]]]:
    """Targets, what they are made of before the step, and the weights, with values of this step written out."""
    made: dict[str, Terms] = {}
    for assignment in instructions.assignments:
        terms: Terms = {}
        for name, weight in assignment.terms:
            for part, factor in made.get(name, {name: 1.0}).items():
                terms[part] = terms.get(part, 0.0) + weight * factor
        made[assignment.target] = terms
    inputs = tuple(dict.fromkeys(name for terms in made.values() for name in terms))
    # the next sample first: it alone has the sample's dtype
    targets = tuple(sorted(made, key=lambda name: name != NEXT))
    return targets, inputs, [[made[target].get(name, 0.0) for name in inputs] for target in targets]
