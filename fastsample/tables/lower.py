"""A table lowered to sums over fixed slots: the one form that every way of running a solver reads.

A step holds numbered values: the sample, the model's output, noise, then what earlier steps left, which is the
history, newest entry first, and the named states. These are the slots; they mean the same at every step of a table. A
step makes a few sums of them: what it leaves for later steps, and last the next sample. `Lowered.steps` says this
sparsely, for running it one operation a term; `Lowered.dense` as one matrix a step, for a kernel or a graph.

Two things save operations. The next sample may read a value that the step has just made in place of the sample and
output that it is made of. And what is left for later steps is stored without the factor of its first term, which goes
into the weights of whoever reads it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastsample.tables.step import Combination, Step

SAMPLE, OUTPUT, NOISE, STORED = 0, 1, 2, 3
"""Places of the values that a step is given; those that earlier steps left begin at STORED."""

Terms = dict[int, float]
"""Weights by place."""

Scales = list[float | None]
"""By stored slot what its value is to be multiplied by; None where there is no value."""

Made = tuple[int, Terms, float]
"""Of a sum just made: its place, what it is in terms of the slots, and the factor that its value lacks."""

ROUNDING = 1e-12


class Sum(NamedTuple):
    """`factor * (value[lead] + sum of ratio * value[place])`, `others` being the pairs (place, ratio)."""

    lead: int
    others: tuple[tuple[int, float], ...]
    factor: float


class LoweredStep(NamedTuple):
    """What follows one evaluation.

    `sums` are made in order, each of values at places 0, 1, ..: the slots, then the sums before it; the last one is
    the next sample. `keeps` are the places of what the stored slots hold afterwards, None where nobody reads it
    again; `scales` times those values are the table's quantities. `noisy` says whether any sum reads the noise.
    """

    sums: tuple[Sum, ...]
    keeps: tuple[int | None, ...]
    scales: tuple[float | None, ...]
    noisy: bool


@dataclass(frozen=True)
class Lowered:
    """A table's steps over its `slots`, whose first three are sample, output and noise.

    `history` of the others are entries of earlier evaluations, newest first; the rest are states by name.
    """

    slots: tuple[str, ...]
    history: int
    steps: tuple[LoweredStep, ...]

    @property
    def empty(self) -> tuple[None, ...]:
        """What the stored slots hold before the first step: None each."""
        return (None,) * (len(self.slots) - STORED)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The slots that some step reads: all, but for the noise of tables without any."""
        noisy = any(step.noisy for step in self.steps)
        return tuple(place for place in range(len(self.slots)) if noisy or place != NOISE)

    @property
    def targets(self) -> tuple[int, ...]:
        """The stored slots that a step writes: the newest entry's, if there is a history, and every state's."""
        return (*range(STORED, STORED + min(self.history, 1)), *range(STORED + self.history, len(self.slots)))

    def final(self, name: str, stored: Sequence[Any]) -> Any:
        """The state `name` after the last step, of what is stored then."""
        slot = self.slots.index(name) - STORED
        return self.steps[-1].scales[slot] * stored[slot]

    def transitions(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Each step on the vector of the sample and the stored values: its matrix, [steps, s, s], and what it adds.

        That is the output and the noise by the weights [steps, s] of the second and third result; s is 1 for the
        sample and one for each stored slot. Values that nobody reads again are 0.
        """
        kept = [SAMPLE, *range(STORED, len(self.slots))]
        result = np.zeros((len(self.steps), len(kept), len(self.slots)))
        for matrix, step in zip(result, self.steps, strict=True):
            rows = _written_out(step, len(self.slots))
            matrix[0] = rows[-1]
            for row, place in enumerate(step.keeps, start=1):
                if place is not None:
                    matrix[row] = rows[place]
        return result[:, :, kept], result[:, :, OUTPUT], result[:, :, NOISE]

    @cached_property
    def operations(self) -> int:
        """The most operations of a step that is run one a term."""
        counts = [sum(max(1, len(others) + (factor != 1)) for _, others, factor in step.sums) for step in self.steps]
        return max(counts, default=0)

    @cached_property
    def weights(self) -> tuple[tuple[float, ...], ...]:
        """:meth:`dense` rounded to float32, a step's matrix row by row as numbers: the arguments of a launch."""
        dense = self.dense()
        return tuple([tuple(row) for row in dense.reshape(len(dense), -1).astype(np.float32).tolist()])

    def dense(self) -> NDArray[np.float64]:
        """Each step as a matrix, [steps, 1 + targets, inputs] in float64: the next sample's row, then the targets'.

        Older entries move one slot on. A state that stays as it is has a row of the identity.
        """
        width = len(self.slots)
        result = np.zeros((len(self.steps), 1 + len(self.targets), width))
        for matrix, step in zip(result, self.steps, strict=True):
            rows = _written_out(step, width)
            matrix[0] = rows[-1]
            for row, slot in enumerate(self.targets, start=1):
                place = step.keeps[slot - STORED]
                if place is not None:
                    matrix[row] = rows[place]
        return result[:, :, list(self.inputs)]


def _written_out(step: LoweredStep, width: int) -> list[NDArray[np.float64]]:
    """The values at all places of a step in terms of its `width` slots, the next sample last."""
    rows = list(np.eye(width))
    for lead, others, factor in step.sums:
        rows.append(factor * sum((ratio * rows[place] for place, ratio in others), rows[lead]))
    return rows


def advance(
    step: LoweredStep, sample: Any, output: Any, stored: Sequence[Any], noise: Any
) -> tuple[Any, tuple[Any, ...]]:
    """One step on numbers or arrays: the next sample, and what the stored slots hold then."""
    values = [sample, output, noise, *stored]
    for lead, others, factor in step.sums:
        total = values[lead]
        for place, ratio in others:
            total = total + ratio * values[place]
        values.append(factor * total)
    return values[-1], tuple([None if place is None else values[place] for place in step.keeps])


def sum_of(terms: Terms) -> Sum:
    """The sum of values by their weights, led by a term of weight 1, which saves the factor, else by the largest."""
    if not terms:
        return Sum(SAMPLE, (), 0.0)
    lead, most = SAMPLE, -1.0
    for place, weight in terms.items():
        size = math.inf if weight == 1.0 else abs(weight)
        if size >= most:
            lead, most = place, size
    return Sum(lead, _ratios(terms, lead), terms[lead])


def lower(steps: Sequence[Step], keep: Sequence[str] = ()) -> Lowered:
    """The lowered form of a table's `steps`; states named in `keep` are held to the end, though no step reads them.

    Raises ValueError for a step that reads what no step before it has made.
    """
    readers = [c for step in steps for c in (step.next, step.entry, *step.states.values()) if c is not None]
    history = max([len(reader.history) for reader in readers], default=0)
    states = sorted(set[str]().union(*[step.states for step in steps], *[reader.states for reader in readers]))
    places = {name: place for place, name in enumerate(states, start=STORED + history)}
    slots = ("sample", "output", "noise", *(f"history {age}" for age in range(history)), *states)
    scales: Scales = [None] * (len(slots) - STORED)
    # the entries move one slot on; a state that is not made anew stays
    moved = [*range(STORED - 1, STORED - 1 + history), *range(STORED + history, len(slots))]
    lowered = []
    for index, step in enumerate(steps):
        try:
            made, scales = _lowered_step(step, scales, places, moved)
        except KeyError as error:
            raise ValueError(
                f"step {index} reads {slots[error.args[0]]!r}, which no step before it has made"
            ) from None
        lowered.append(made)
    return Lowered(slots, history, _without_the_dead(lowered, {places[name] for name in keep}))


def _lowered_step(
    step: Step, scales: Scales, places: dict[str, int], moved: Sequence[int]
) -> tuple[LoweredStep, Scales]:
    """One step, whose `keeps` hold dead values still, and the scales after it; `moved` are what it keeps unmade."""
    first = STORED + len(scales)  # the place of its first sum
    keeps: list[int | None] = list(moved)
    after = [scales[place - STORED] if place >= STORED else None for place in moved]
    sums: list[Sum] = []
    made: list[Made] = []
    stored = [] if step.entry is None else [(STORED, step.entry)]
    stored += [(places[name], combination) for name, combination in step.states.items()]
    noisy = step.next.noise != 0
    for slot, combination in stored:
        noisy = noisy or combination.noise != 0
        place, terms = first + len(sums), _terms(combination, scales, places)
        total, scale = _stored_sum(_shared(terms, made), first)
        keeps[slot - STORED], after[slot - STORED] = place, scale
        made.append((place, terms, scale))
        sums.append(total)
    sums.append(sum_of(_shared(_terms(step.next, scales, places), made)))
    return LoweredStep(tuple(sums), tuple(keeps), tuple(after), noisy), after


def _terms(combination: Combination, scales: Scales, places: dict[str, int]) -> Terms:
    """The combination's weights of the values as they are stored. Raises KeyError(place) where there is no value."""
    terms: Terms = {}
    if combination.sample:
        terms[SAMPLE] = combination.sample
    if combination.output:
        terms[OUTPUT] = combination.output
    if combination.noise:
        terms[NOISE] = combination.noise
    if combination.history:
        for place, weight in enumerate(combination.history, start=STORED):
            if weight:
                terms[place] = weight * _scale(place, scales)
    if combination.states:
        for name, weight in combination.states.items():
            if weight:
                terms[places[name]] = weight * _scale(places[name], scales)
    return terms


def _scale(place: int, scales: Scales) -> float:
    scale = scales[place - STORED]
    if scale is None:
        raise KeyError(place)
    return scale


def _shared(terms: Terms, made: list[Made]) -> Terms:
    """`terms` with values just made in place of what they are made of, where that is no longer."""
    no_places: list[int] = []
    for value, parts, scale in reversed(made):  # states first: they are made of the most
        ratios = {place: terms[place] / weight for place, weight in parts.items() if place in terms}
        factor, gone = 0.0, no_places  # the factor of the value with which the most terms go
        if len(ratios) <= len(parts) - len(ratios):
            continue  # what is missing is more than could go
        for ratio in ratios.values():
            near = ROUNDING * abs(ratio)
            same = [place for place, other in ratios.items() if -near <= other - ratio <= near]
            if len(same) > len(gone):
                factor, gone = ratio, same
            if 2 * len(gone) >= len(ratios):
                break  # no more go with another
        if len(gone) > len(parts) - len(ratios):
            rest = {place: weight for place, weight in terms.items() if place not in gone}
            for place, weight in parts.items():
                if place not in gone:
                    rest[place] = rest.get(place, 0.0) - factor * weight
            terms = {value: factor * scale, **rest}
    return terms


def _stored_sum(terms: Terms, first: int) -> tuple[Sum, float]:
    """The sum of a value that is stored, without the factor of its lead, and that factor: the value's scale."""
    # not a value of an earlier step: its scale would build up
    lead, most = STORED, -1.0
    for place, weight in terms.items():
        if (place < STORED or place >= first) and abs(weight) >= most:
            lead, most = place, abs(weight)
    if most < 0:
        return sum_of(terms), 1.0
    return Sum(lead, _ratios(terms, lead), 1.0), terms[lead]


def _ratios(terms: Terms, lead: int) -> tuple[tuple[int, float], ...]:
    factor = terms[lead]
    return tuple([(place, weight / factor) for place, weight in terms.items() if place != lead])


def _without_the_dead(steps: Sequence[LoweredStep], read: set[int | None]) -> tuple[LoweredStep, ...]:
    """`steps` that keep only what a later step reads, or the stored slots `read` at the end."""
    result = []
    for step in reversed(steps):
        keeps = tuple([place if slot in read else None for slot, place in enumerate(step.keeps, start=STORED)])
        result.append(step if keeps == step.keeps else step._replace(keeps=keeps))
        read = set(keeps)
        for lead, others, _ in step.sums:
            read.add(lead)
            read.update([place for place, _ in others])
    return tuple(reversed(result))
