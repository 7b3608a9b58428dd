"""The weights of a table, tuned row by row: ridge regression of each next sample onto the teacher's trajectory.

Each row is fitted on the samples that the rows before it made, so that it also corrects what these got wrong. It is
convex, and costs one roll-out.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.tuning.linear import Linear
from fastsample.tuning.pairs import Pairs
from fastsample.tuning.rollout import next_sample
from fastsample.tuning.teacher import Teacher

REACH = 4
"""Predictions that a tuned row weighs: the newest and the three before it."""
RIDGE = 1e-2
"""How strongly weights are held to the solver's own, relative to the mean curvature."""


def free_weights(count: int) -> list[tuple[int, int]]:
    """The weights of a table that are tuned, by row and evaluation; the newest follow from the marginals."""
    return [(row, column) for row in range(1, count) for column in range(max(0, row - REACH + 1), row)]


def fit_rows(linear: Linear, tune: Pairs, teacher: Teacher, ridge: float = RIDGE) -> Linear:
    """`linear` with the weights of its rows fitted in turn; `teacher` is that of the pairs `tune`."""
    count = linear.count
    tune.purse.spend(tune.cost(count, [0]))
    weights = linear.weights.copy()
    sample, problem = tune.start.sample[None], tune.problem
    data: list[Tensor] = []
    for row in range(count):
        node = linear.nodes[row]
        output = tune.model(sample, [node.time]).to(sample.dtype) if row else tune.start.output[None]
        data.append(problem.data([node], sample, output))
        columns = [column for own, column in free_weights(count) if own == row]
        fitted = Linear(linear.nodes, weights)
        if columns:
            target = tune.reference if row == count - 1 else teacher.at(linear.nodes[row + 1])
            rest = target - next_sample([fitted], row, sample, data)[0]
            change = _ridge([(data[column] - data[row])[0] for column in columns], rest, ridge)
            weights[row, columns] += change
            weights[row, row] -= change.sum()
            fitted = Linear(linear.nodes, weights)
        sample = next_sample([fitted], row, sample, data)
    return Linear(linear.nodes, weights)


def _ridge(features: list[Tensor], rest: Tensor, ridge: float) -> NDArray[np.float64]:
    """The combination of `features` that is nearest to `rest`, held to 0."""
    flat = torch.stack([feature.flatten() for feature in features])
    curvature = (flat @ flat.T).cpu().double().numpy()
    slope = (flat @ rest.flatten()).cpu().double().numpy()
    held = ridge * np.trace(curvature) / len(features) * np.eye(len(features))
    return np.asarray(np.linalg.solve(curvature + held, slope))
