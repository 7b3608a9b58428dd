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
from fastsample.wording import counted


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
        carried = self._carry_constants()
        ends = [("data", carried.real, last.alpha)]
        if self.exact_variance and not self.stochastic:
            ends.append(("noise", carried.imag, last.sigma))
        for kind, got, want in ends:
            error = abs(got - want)
            if not (error <= 1e-7 or error <= 1e-7 * self._magnitude()):  # nan is wrong too
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
        return json.dumps(self, default=fields_of)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """The table that :meth:`to_json` wrote; ValueError, in one line, on any other text."""
        return read_json(cls, text)

    def __str__(self) -> str:
        lines = [f"{self.solver}, {self.prediction_type}, {counted(self.nfe, 'evaluation')}"]
        for step in self.steps:
            c = step.next
            terms = [f"{c.sample:+.5f} sample", f"{c.output:+.5f} output"]
            terms += [f"{w:+.5f} history[{i}]" for i, w in enumerate(c.history) if w]
            terms += [f"{w:+.5f} {name}" for name, w in c.states.items()]
            terms += [f"{c.noise:+.5f} noise"] if c.noise else []
            lines.append(f"{step.node.time:10.3f} -> {step.target.time:10.3f}: {' '.join(terms)}")
        return "\n".join(lines)

    def _carry_constants(self) -> complex:
        """Where constant data of 1 and constant noise of 1 end: both in one pass, the noise in the imaginary part."""
        outputs = [output_of(step.node, self.prediction_type, 1.0, 1j) for step in self.steps]
        first = self.steps[0].node
        return complex(self.recurrence(complex(first.alpha, first.sigma), outputs, [0.0] * self.nfe)[-1])

    def _magnitude(self) -> float:
        weights = [w for s in self.steps for w in (s.next.sample, s.next.output, *s.next.history)]
        return max(1.0, *map(abs, weights))


def fields_of(value: Any) -> dict[str, Any]:
    """A dataclass as JSON holds it; what it has cached is no part of it."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def output_of(node: Node, prediction_type: str, data: Any, noise: Any) -> Any:
    """What an exact model of `prediction_type` outputs at `node` for known data and noise."""
    if prediction_type in ("epsilon", "sample"):
        return noise if prediction_type == "epsilon" else data
    p, q = output_axes(node.alpha, node.sigma, prediction_type)
    return p * noise - q * data


def compile_rows(solver: str, rows: Sequence[Row], space: Space, prediction_type: str, exact: bool = True) -> Table:
    """Turn rows on predictions into a table on raw model outputs. `space` is what the history holds."""
    kept = _kept_entries(rows)
    steps = []
    for index, row in enumerate(rows):
        source = row.source
        # where a noise prediction says nothing about the data, rows that weigh it are refused
        asked = source.alpha or prediction_type != "epsilon" or _weighs_data(row, space)
        data = prediction_weights(source, prediction_type, "data") if asked else (0.0, 0.0)
        latest = data if space == "data" else prediction_weights(source, prediction_type, "noise")
        entry = _combination(row.entry or LATEST, latest, data) if index in kept else None
        states = {name: _combination(weights, latest, data) for name, weights in row.states.items()}
        steps.append(Step(source, row.target, _combination(row.next, latest, data), data, entry, states))
    return Table(solver, prediction_type, tuple(steps), exact)


LATEST = Weights(history=(1.0,))
"""The history entry of a row that names none: the prediction just made."""


def _kept_entries(rows: Sequence[Row]) -> set[int]:
    """The evaluations whose history entry a later row reads, for its step or for an entry that is itself read."""
    kept = set[int]()
    for index in reversed(range(len(rows))):
        row = rows[index]
        entry = (row.entry or LATEST,) if index in kept else ()
        for weights in (row.next, *entry, *row.states.values()):
            for ago, weight in enumerate(weights.history):
                if ago and weight:
                    kept.add(index - ago)
    return kept


def _weighs_data(row: Row, space: Space) -> bool:
    """Whether `row` reads the data prediction just made."""
    weighed = (row.next, *([row.entry] if row.entry else []), *row.states.values())
    return any(weights.data or (space == "data" and any(weights.history[:1])) for weights in weighed)


def _combination(weights: Weights, latest: tuple[float, float], data: tuple[float, float]) -> Combination:
    """`weights` of predictions as weights of the sample and the raw output.

    `latest` and `data` say the prediction just made, in the space of the history and of data, by these two.
    """
    sample, output, history = weights.sample, 0.0, weights.history
    if history:
        sample, output = sample + history[0] * latest[0], history[0] * latest[1]
    if weights.data:
        sample, output = sample + weights.data * data[0], output + weights.data * data[1]
    return Combination(sample, output, history[1:], dict(weights.states), weights.noise)
