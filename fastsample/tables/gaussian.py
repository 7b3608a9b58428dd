"""What a table does to Gaussian data, exactly: there every sampler is linear, so two moments say all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastsample.schedules.base import Node
from fastsample.tables.step import Combination, Step
from fastsample.tables.table import Table, output_of


def gaussian_output(node: Node, prediction_type: str, std: float) -> float:
    """The factor g of the exact model of N(0, std^2) data: at `node` it outputs `g * sample`.

    With v = (alpha std)^2 + sigma^2 the mean of the data given the sample is `alpha std^2 / v * sample`, that of the
    noise `sigma / v * sample`.
    """
    variance = (node.alpha * std) ** 2 + node.sigma**2
    return float(output_of(node, prediction_type, node.alpha * std**2 / variance, node.sigma / variance))


def gaussian_spread(table: Table, std: float = 0.5) -> float:
    """The standard deviation at the end of `table` of samples of N(0, std^2) data, from its exact model.

    The start has the marginal's own deviation. An exact solver ends at `hypot(alpha std, sigma)` of the last node:
    at `std` on clean data. Nothing is drawn: the sample is a vector of its dependence on the start and on each
    step's noise, which are independent.
    """
    first = table.steps[0].node
    draws = 1 + table.nfe if table.stochastic else 1
    basis = np.eye(draws) if draws > 1 else [1.0]
    sample: Any = basis[0] * math.hypot(first.alpha * std, first.sigma)
    history, states = list[Any](), dict[str, Any]()
    for index, step in enumerate(table.steps):
        output = gaussian_output(step.node, table.prediction_type, std) * sample
        noise = basis[1 + index] if draws > 1 else 0.0
        sample, entry, new = _step(step, sample, output, noise, history, states)
        history.insert(0, entry)
        states = {**states, **new}
    return float(np.linalg.norm(sample))


def _step(
    step: Step, sample: Any, output: Any, noise: Any, history: list[Any], states: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """The next sample, the new history entry and the changed states."""

    def combine(c: Combination) -> Any:
        total = c.sample * sample + c.output * output + c.noise * noise
        total = total + sum(w * entry for w, entry in zip(c.history, history, strict=False) if w)
        return total + sum(w * states[name] for name, w in c.states.items() if w)

    entry = combine(step.entry) if step.entry is not None else 0.0
    return combine(step.next), entry, {name: combine(c) for name, c in step.states.items()}
