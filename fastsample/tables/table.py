"""A sampler as data: for every model evaluation, the linear update that follows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsample.schedules.base import Node
from fastsample.tables.lower import Lowered, advance, lower
from fastsample.tables.prediction import Space, check_prediction_type, output_axes, prediction_weights
from fastsample.tables.reading import read_json
from fastsample.tables.row import Row, Weights
from fastsample.tables.step import Combination, Step


@dataclass(frozen=True)
class Unrolled:
    """The closed form `x_i = a[i] x_T + sum_{j<i} b[i, j] output_j + sum_{j<i} c[i, j] noise_j`, i = 0..N."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    c: NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Every coefficient of a sampler on a grid, in float64. Made by `fastsample.build_table`.

    Raises ValueError on construction when the whole table does not carry constant data (and, without noise,
    constant noise) from the first marginal to the last.
    """

    solver: str
    prediction_type: str
    steps: tuple[Step, ...]
    exact_variance: bool = True

    def __post_init__(self) -> None:
        check_prediction_type(self.prediction_type)
        if not self.steps:
            raise ValueError("steps = (): a table has at least one step")
        first, last = self.steps[0].node, self.steps[-1].target
        for data, noise in ((1.0, 0.0), (0.0, 1.0)):
            if noise and (self.stochastic or not self.exact_variance):
                continue
            got = self._carry_constant(data, noise)
            want = last.alpha * data + last.sigma * noise
            if not abs(got - want) <= 1e-7 * self._magnitude():  # nan is wrong too
                kind = "data" if data else "noise"
                raise ValueError(
                    f"table of {self.solver!r} from time {first.time:g} to {last.time:g}: constant {kind} ends at "
                    f"{got:.9g} instead of {want:.9g}; check the rule's entry and state weights"
                )

    @property
    def times(self) -> NDArray[np.float64]:
        """The times of the evaluations and the final time, N + 1 values."""
        return np.array([step.node.time for step in self.steps] + [self.steps[-1].target.time])

    @property
    def nfe(self) -> int:
        """Model evaluations."""
        return len(self.steps)

    @property
    def stochastic(self) -> bool:
        """Whether any step draws noise."""
        return any(step.next.noise for step in self.steps)

    @cached_property
    def lowered(self) -> Lowered:
        """What runs this table: its steps as sums over fixed slots."""
        return lower(self.steps)

    def recurrence(self, sample: Any, outputs: Iterable[Any], noises: Iterable[Any]) -> list[Any]:
        """All N + 1 samples from the first, for given outputs and noises: numbers, or arrays of one shape."""
        samples, stored = [sample], self.lowered.empty
        for step, output, noise in zip(self.lowered.steps, outputs, noises, strict=True):
            sample, stored = advance(step, sample, output, stored, noise)
            samples.append(sample)
        return samples

    def unroll(self) -> Unrolled:
        """The lower-triangular closed form, by running the recurrence on coefficient vectors."""
        count = self.nfe
        basis = np.eye(1 + 2 * count)
        full = np.stack(self.recurrence(basis[0], basis[1 : 1 + count], basis[1 + count :]))
        return Unrolled(full[:, 0], full[:, 1 : 1 + count], full[:, 1 + count :])

    def to_json(self) -> str:
        """This table as JSON text; :meth:`from_json` gives an equal table back, to the last digit."""
        return json.dumps(self, default=_fields)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The table that :meth:`to_json` wrote; ValueError, in one line, on any other text."""
        return read_json(cls, text)

    def __str__(self) -> str:
        lines = [f"{self.solver}, {self.prediction_type}, {self.nfe} evaluations"]
        for step in self.steps:
            c = step.next
            terms = [f"{c.sample:+.5f} sample", f"{c.output:+.5f} output"]
            terms += [f"{w:+.5f} history[{i}]" for i, w in enumerate(c.history) if w]
            terms += [f"{w:+.5f} {name}" for name, w in c.states.items()]
            terms += [f"{c.noise:+.5f} noise"] if c.noise else []
            lines.append(f"{step.node.time:10.3f} -> {step.target.time:10.3f}: {' '.join(terms)}")
        return "\n".join(lines)

    def _carry_constant(self, data: float, noise: float) -> float:
        nodes = [step.node for step in self.steps]
        outputs = [output_of(node, self.prediction_type, data, noise) for node in nodes]
        start = nodes[0].alpha * data + nodes[0].sigma * noise
        return float(self.recurrence(start, outputs, [0.0] * self.nfe)[-1])

    def _magnitude(self) -> float:
        weights = [abs(w) for s in self.steps for w in (s.next.sample, s.next.output, *s.next.history)]
        return max(1.0, *weights)


def _fields(value: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it; what it has cached is no part of it."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def output_of(node: Node, prediction_type: str, data: Any, noise: Any) -> Any:
    """What an exact model of `prediction_type` outputs at `node` for known data and noise."""
    if prediction_type in ("epsilon", "sample"):
        return noise if prediction_type == "epsilon" else data
    p, q = output_axes(node, prediction_type)
    return p * noise - q * data


def compile_rows(solver: str, rows: Sequence[Row], space: Space, prediction_type: str, exact: bool = True) -> Table:
    """Turn rows on predictions into a table on raw model outputs. `space` is what the history holds."""
    kept = _kept_entries(rows)
    steps = []
    for index, row in enumerate(rows):
        said = _Said(row.source, prediction_type, space)
        entry = said.combination(row.entry or LATEST) if index in kept else None
        states = {name: said.combination(weights) for name, weights in row.states.items()}
        data = said.data if row.source.alpha or prediction_type != "epsilon" else (0.0, 0.0)
        steps.append(Step(row.source, row.target, said.combination(row.next), data, entry, states))
    return Table(solver, prediction_type, tuple(steps), exact)


LATEST = Weights(history=(1.0,))
"""The history entry of a row that names none: the prediction just made."""


def _kept_entries(rows: Sequence[Row]) -> set[int]:
    """The evaluations whose history entry a later row reads."""
    kept = set[int]()
    for index, row in enumerate(rows):
        for weights in (row.next, row.entry or LATEST, *row.states.values()):
            kept.update(index - ago for ago, weight in enumerate(weights.history) if ago and weight)
    return kept


class _Said:
    """What a model output at `node` says: the predictions that rows weigh, each computed when first asked for."""

    def __init__(self, node: Node, prediction_type: str, space: Space) -> None:
        self.node, self.prediction_type, self.space = node, prediction_type, space

    @cached_property
    def data(self) -> tuple[float, float]:
        return prediction_weights(self.node, self.prediction_type, "data")

    @cached_property
    def latest(self) -> tuple[float, float]:
        """In the space of the history."""
        return self.data if self.space == "data" else prediction_weights(self.node, self.prediction_type, "noise")

    def combination(self, weights: Weights) -> Combination:
        """`weights` of predictions as weights of the sample and the raw output."""
        sample, output = weights.sample, 0.0
        if weights.history and weights.history[0]:
            a, b = self.latest
            sample, output = sample + weights.history[0] * a, output + weights.history[0] * b
        if weights.data:
            a, b = self.data
            sample, output = sample + weights.data * a, output + weights.data * b
        return Combination(sample, output, weights.history[1:], dict(weights.states), weights.noise)
