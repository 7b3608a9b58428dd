"""A table as a short program: what is computed once is used again, and kept only while it is read.

Every value (a history entry, a new state, the next sample) is a linear combination. Written out each costs one
tensor operation a term; here the next sample may read the entry just made in place of the sample and output that
it is made of, and stored values are scaled so that their first term has weight 1, which saves its multiplication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fastsample.tables.table import Combination, Step, Table

SAMPLE, OUTPUT, NOISE, NEXT = "sample", "output", "noise", "next"
Terms = dict[str, float]
"""Weights by value name."""


@dataclass(frozen=True)
class Assignment:
    """`target = sum of weight * value`; each value is the sample, output, noise or the target of an earlier one."""

    target: str
    terms: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Instructions:
    """What follows one model evaluation: assignments, the last one to NEXT, then the values nobody reads again."""

    assignments: tuple[Assignment, ...]
    frees: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """The instructions of every evaluation. `scales[name]` times a stored value is the table's quantity."""

    steps: tuple[Instructions, ...]
    scales: dict[str, float]


def compile_program(table: Table, keep: Sequence[str] = ()) -> Program:
    """The program that computes what `table` says. Values are named "entry n" and "<state> n", n the evaluation.

    Those named in `keep` are not dropped when no later step reads them.
    """
    compiler = _Compiler()
    steps = [compiler.assignments(index, step) for index, step in enumerate(table.steps)]
    return Program(_with_frees(steps, {SAMPLE, OUTPUT, NOISE, NEXT, *keep}), compiler.scales)


@dataclass
class _Compiler:
    """Which stored value holds what, while a table is walked through."""

    entries: list[str] = field(default_factory=list)  # newest first; "" where nothing was kept
    states: dict[str, str] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def assignments(self, index: int, step: Step) -> tuple[Assignment, ...]:
        """Those of one step: its entry, its states, the next sample."""
        stored = {f"entry {index}": step.entry} if step.entry is not None else {}
        stored |= {f"{name} {index}": combination for name, combination in step.states.items()}
        made: dict[str, Terms] = {}  # this evaluation's values in terms of older ones
        result = [self._store(made, target, combination) for target, combination in stored.items()]
        result.append(Assignment(NEXT, _ordered(_shared(self._terms(step.next), made))))
        self.entries.insert(0, f"entry {index}" if step.entry is not None else "")
        self.states |= {name: f"{name} {index}" for name in step.states}
        return tuple(result)

    def _store(self, made: dict[str, Terms], target: str, combination: Combination) -> Assignment:
        """The assignment of a value at the scale that gives its first term weight 1."""
        terms = self._terms(combination)
        shared = _shared(terms, made)
        # not a value of an earlier step: its scale would build up
        leads = [name for name in shared if name in (SAMPLE, OUTPUT, NOISE) or name in made]
        lead = max(leads, key=lambda name: abs(shared[name]), default=None)
        scale = shared[lead] if lead else 1.0
        self.scales[target] = scale
        made[target] = {name: weight / scale for name, weight in terms.items()}
        return Assignment(target, _ordered({name: weight / scale for name, weight in shared.items()}, lead))

    def _terms(self, combination: Combination) -> Terms:
        """The combination's weights of the values as they are stored."""
        terms = {SAMPLE: combination.sample, OUTPUT: combination.output, NOISE: combination.noise}
        for weight, name in zip(combination.history, self.entries, strict=False):
            if weight:
                terms[name] = weight * self.scales[name]
        for state, weight in combination.states.items():
            name = self.states[state]
            terms[name] = weight * self.scales[name]
        return {name: weight for name, weight in terms.items() if weight}


def _shared(terms: Terms, made: dict[str, Terms]) -> Terms:
    """`terms` with values just made in place of what they are made of, where that is no longer."""
    for value, parts in reversed(made.items()):  # states first: they are made of the most
        candidates = (_substituted(terms, value, parts, terms[name] / parts[name]) for name in parts if name in terms)
        terms = min((terms, *candidates), key=lambda found: (len(found), value not in found))
    return terms


def _substituted(terms: Terms, value: str, parts: Terms, factor: float) -> Terms:
    """`terms` with `factor * value` taken out; what is left of it by rounding alone is nothing."""
    rest = {value: factor}
    for name in {**terms, **parts}:
        left, taken = terms.get(name, 0.0), factor * parts.get(name, 0.0)
        if abs(left - taken) > 1e-12 * max(abs(left), abs(taken)):
            rest[name] = left - taken
    return rest


def _ordered(terms: Terms, lead: str | None = None) -> tuple[tuple[str, float], ...]:
    """The lead first, else stored values, which are in the accumulation's dtype already."""
    key = {name: (name != lead, name in (SAMPLE, OUTPUT, NOISE)) for name in terms}
    return tuple(sorted(terms.items(), key=lambda item: key[item[0]]))


def _with_frees(steps: list[tuple[Assignment, ...]], read: set[str]) -> tuple[Instructions, ...]:
    """Each step's assignments, and the values that no later one reads, `read` apart."""
    instructions = []
    for assignments in reversed(steps):
        used = {name for assignment in assignments for name in (assignment.target, *dict(assignment.terms))}
        instructions.append(Instructions(assignments, tuple(sorted(used - read))))
        read = read | used
    return tuple(reversed(instructions))
