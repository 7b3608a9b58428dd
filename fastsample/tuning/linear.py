"""Any deterministic solver in one form: each next sample from the last one and all data predictions so far."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.base import Node
from fastsample.tables.lower import advance
from fastsample.tables.row import Row, Weights
from fastsample.tables.table import Table, compile_rows

NEGLIGIBLE = 1e-12
"""Weights below this, which rounding leaves where a solver has none, are none."""


@dataclass(frozen=True, eq=False)
class Linear:
    """`x_{i+1} = (sigma_{i+1} / sigma_i) x_i + sum_{j <= i} weights[i, j] d_j`, d_j the data prediction at node j.

    `nodes` are the N evaluations and the end, `weights` [N, N] lower triangular. A row that keeps the marginals sums
    to `alpha_{i+1} - alpha_i sigma_{i+1} / sigma_i`.
    """

    nodes: tuple[Node, ...]
    weights: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Evaluations."""
        return len(self.weights)

    @property
    def ratios(self) -> NDArray[np.float64]:
        """The weight of the last sample in each step."""
        sigmas = np.array([node.sigma for node in self.nodes])
        return np.asarray(sigmas[1:] / sigmas[:-1])

    def table(self, prediction_type: str, solver: str) -> Table:
        """This as a table of raw model outputs, checked row by row."""
        rows = []
        for index, ratio in enumerate(self.ratios):
            weights = tuple(float(weight) for weight in self.weights[index, index::-1])
            used = max((ago + 1 for ago, weight in enumerate(weights) if weight), default=0)
            rows.append(Row(self.nodes[index], self.nodes[index + 1], Weights(float(ratio), history=weights[:used])))
        return compile_rows(solver, rows, "data", prediction_type)


def linear_of(table: Table) -> Linear:
    """`table` in this form. Raises ValueError where it draws noise."""
    if table.stochastic:
        raise ValueError(f"solver = {table.solver!r} draws noise: tune a deterministic one, such as 'dpmpp-2m'")
    count = table.nfe
    basis = np.eye(count + 1)
    samples, sample, stored = [basis[0]], basis[0], table.lowered.empty
    for index, (step, lowered) in enumerate(zip(table.steps, table.lowered.steps, strict=True)):
        a, b = step.data
        sample, stored = advance(lowered, sample, (basis[index + 1] - a * sample) / b, stored, 0.0)
        samples.append(sample)
    nodes = tuple([step.node for step in table.steps] + [table.steps[-1].target])
    made = np.stack(samples)[:, 1:]
    ratios = np.array([target.sigma / source.sigma for source, target in itertools.pairwise(nodes)])
    weights = made[1:] - ratios[:, None] * made[:-1]
    weights[np.abs(weights) < NEGLIGIBLE * max(1.0, float(np.abs(weights).max()))] = 0.0
    return with_sums(Linear(nodes, weights))


def with_sums(linear: Linear) -> Linear:
    """`linear` with the diagonal, the weights of the newest predictions, such that it keeps the marginals."""
    return Linear(linear.nodes, linear.weights + np.diag(row_sums(linear.nodes) - linear.weights.sum(1)))


def row_sums(nodes: Sequence[Node]) -> NDArray[np.float64]:
    """What each row's weights sum to where constant data go from marginal to marginal."""
    return np.array(
        [target.alpha - source.alpha * target.sigma / source.sigma for source, target in itertools.pairwise(nodes)]
    )
