"""Many tables run at once over one batch of samples; rows that share a beginning share its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.tuning.linear import Linear
from fastsample.tuning.problem import Model, Problem, Start


@dataclass(frozen=True)
class Rollout:
    """What R tables made of P samples: `samples` [N + 1][R, P, ..] and data predictions `data` [N][R, P, ..]."""

    samples: list[Tensor]
    data: list[Tensor]

    @property
    def final(self) -> Tensor:
        """The last samples [R, P, ..]."""
        return self.samples[-1]


def roll_out(
    model: Model,
    problem: Problem,
    tables: Sequence[Linear],
    start: Start,
    begins: Sequence[int] | None = None,
    leaders: Sequence[int] | None = None,
) -> Rollout:
    """Run `tables`, of as many evaluations each, from `start`.

    The first evaluation is the start's. `begins[r]` says that row r is as row `leaders[r]` (by default 0) before its
    evaluation of that number, so that it is evaluated from there on only; a leader's own is 0.
    """
    count, rows = tables[0].count, len(tables)
    begins = [0] * rows if begins is None else list(begins)
    leaders = [0] * rows if leaders is None else list(leaders)
    samples = [start.sample.expand(rows, *start.sample.shape)]
    data: list[Tensor] = []
    for index in range(count):
        x, nodes = samples[-1], [table.nodes[index] for table in tables]
        if index == 0:
            found = problem.data(nodes, x, start.output.expand(rows, *start.output.shape))
        else:
            own = [row for row in range(rows) if begins[row] <= index]
            output = model(x[own], [nodes[row].time for row in own])
            made = problem.data([nodes[row] for row in own], x[own], output.to(x.dtype))
            place = {row: number for number, row in enumerate(own)}
            found = made[[place[row if row in place else leaders[row]] for row in range(rows)]]
        data.append(found)
        samples.append(next_sample(tables, index, x, data))
    return Rollout(samples, data)


def next_sample(tables: Sequence[Linear], index: int, x: Tensor, data: Sequence[Tensor]) -> Tensor:
    """The samples [R, P, ..] after evaluation `index`, of those before it and all data predictions so far."""

    def each(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))

    made = each([float(table.ratios[index]) for table in tables]) * x
    for earlier, found in enumerate(data):
        weights = [float(table.weights[index, earlier]) for table in tables]
        if any(weights):
            made = made + each(weights) * found
    return made


def cost(count: int, begins: Sequence[int]) -> int:
    """Evaluations of one sample in :func:`roll_out`: from where each row begins, without the first."""
    return sum(count - max(1, begin) for begin in begins)
