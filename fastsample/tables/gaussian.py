"""What a table does to Gaussian data, exactly: there every sampler is linear, so nothing needs to be drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.base import Node
from fastsample.tables.lower import advance
from fastsample.tables.table import Table, output_of


def gaussian_output(node: Node, prediction_type: str, std: float) -> float:
    """The factor g of the exact model of N(0, std^2) data: at `node` it outputs `g * sample`.

    With v = (alpha std)^2 + sigma^2 the mean of the data given the sample is `alpha std^2 / v * sample`, that of the
    noise `sigma / v * sample`.
    """
    variance = (node.alpha * std) ** 2 + node.sigma**2
    return float(output_of(node, prediction_type, node.alpha * std**2 / variance, node.sigma / variance))


def gaussian_response(table: Table, std: float = 0.5) -> NDArray[np.float64]:
    """How the end of `table` depends on its start, of variance 1, and on the noise of each step, in a vector.

    For samples made by the exact model of N(0, std^2) data, which start from the first marginal. Only the first entry
    differs from 0 where the table draws no noise.
    """
    first = table.steps[0].node
    basis: Any = np.eye(1 + table.nfe) if table.stochastic else [1.0, *[0.0] * table.nfe]
    sample, stored = basis[0] * math.hypot(first.alpha * std, first.sigma), table.lowered.empty
    for step, lowered, noise in zip(table.steps, table.lowered.steps, basis[1:], strict=True):
        output = gaussian_output(step.node, table.prediction_type, std) * sample
        sample, stored = advance(lowered, sample, output, stored, noise)
    return np.atleast_1d(sample)


def gaussian_spread(table: Table, std: float = 0.5) -> float:
    """The standard deviation, at the end of `table`, of samples made by the exact model of N(0, std^2) data.

    They start from the first marginal. An exact sampler ends at `hypot(alpha std, sigma)` of the last node, on clean
    data at `alpha std`.
    """
    return float(np.linalg.norm(gaussian_response(table, std)))
