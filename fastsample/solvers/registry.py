"""Solvers by name. A module of this package registers its rules; nothing else needs to know it."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastsample.schedules.base import Node
from fastsample.schedules.continuous import LinearVPSchedule
from fastsample.tables.orders import Variable
from fastsample.tables.prediction import Space
from fastsample.tables.row import Row

Rule = Callable[..., Row]
"""`(nodes, target, *, order, **options) -> Row`: the update from `nodes[-1]`, the newest evaluation, to `target`."""

Place = Callable[[Node, Node, float, Mapping[str, Any]], float]
"""`(source, target, part, options) -> lam`: where a stage at `part` of a step lies."""

CONTEXT = ("order", "previous_order", "started", "block", "following", "ahead", "schedule", "published")
"""What a rule may ask for by a keyword of that name: its own order and the one before it, whether any step before was
of an order above 1, how many evaluations its single-step block has, the node after its target (None at the end), how
many noise levels are ahead of the newest evaluation (inf where the end is not clean data), the noise schedule, and
whether long steps are to be made as published."""


@dataclass(frozen=True)
class Solver:
    """A registered rule, and what cannot be read off it.

    `order`: the order of the method, also the default of its `order` option. `space`: whether the history holds
    predictions of data or of noise. `orders`: what the `order` option may be; empty where there is no such option.
    `stages`: the inner points of a single-step method, as parts of a step in log-SNR, 1 its end and 2 that of the
    next step; empty for a multistep one. `place`: where they lie, if not at those parts of the way to its end.
    `limits`: whether a step onto sigma = 0 exists at order 1 only. `flow`: whether it works on flow-matching
    models. `whole_steps`: whether a scheduler's step count means steps with all their stages, not evaluations.
    `always_lowers`: whether `lower_order_final` lowers the last orders at any number of steps. `longest`: the longest
    steps in log-SNR (of a single-step method with all stages) that orders 1, 2, .. are used for; beyond, a lower
    one is closer on exact Gaussian data. Adams' methods step in sigma / alpha and have no such bound. `claims`: the
    order of convergence for a choice of the `order` option, where it is not that choice. `distilled`: whether it is
    made for consistency models alone, whose output jumps to the data.
    """

    name: str
    rule: Rule
    order: int
    space: Space
    summary: str
    references: tuple[str, ...]
    orders: tuple[int, ...] = ()
    stages: tuple[float, ...] = ()
    limits: bool = True
    flow: bool = True
    whole_steps: bool = False
    always_lowers: bool = False
    longest: tuple[float, ...] = (math.inf, math.inf, 2.0)
    claims: Callable[[int], int] | None = None
    place: Place | None = None
    distilled: bool = False

    @cached_property
    def options(self) -> Mapping[str, Any]:
        """The options that a caller may give, with their defaults."""
        parameters = inspect.signature(self.rule).parameters.values()
        found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in CONTEXT}
        return {"order": self.order, **found} if self.orders else found

    @cached_property
    def context(self) -> tuple[str, ...]:
        """Which of :data:`CONTEXT` the rule asks for."""
        return tuple(name for name in CONTEXT if name in inspect.signature(self.rule).parameters)

    @property
    def onto_clean(self) -> str:
        """How a step onto sigma = 0 is made: at the solver's "full" order, or at "order 1"."""
        return "order 1" if self.limits and self.order > 1 else "full"

    @property
    def lower_final(self) -> bool | int:
        """What diffusers' `lower_order_final` means here: never, always, or below that many evaluations."""
        return True if self.stages or self.always_lowers else 15 if self.limits else False

    @property
    def evaluations(self) -> int:
        """Model evaluations a step."""
        return len(self.stages) + 1

    @property
    def looks_ahead(self) -> bool:
        """Whether a stage lies beyond the end of its step."""
        return any(part > 1 for part in self.stages)

    @property
    def needs_schedule(self) -> bool:
        """Whether a table on given nodes needs the noise schedule too: for stages, or to be read by the rule."""
        return self.whole_steps or "schedule" in self.context

    @cached_property
    def stochastic(self) -> bool:
        """Whether a step draws noise, at the default options: told by a step and its stages on a VP model."""
        schedule = LinearVPSchedule()
        nodes = schedule.nodes([0.6, 0.4, 0.3, 0.2])
        drawn = False
        for position in range(1, self.evaluations + 1):
            context = {
                **{"order": position, "previous_order": position - 1, "started": False},
                **{"block": self.evaluations, "following": nodes[-1], "ahead": math.inf, "schedule": schedule},
                "published": False,
            }
            asked = {name: context[name] for name in self.context}
            drawn = drawn or self.rule(nodes[:position], nodes[position], **asked).next.noise != 0
        return drawn

    @property
    def variable(self) -> Variable:
        """What the solver extrapolates its history in."""
        return "lam" if self.limits else "sbar"

    def claimed_order(self, order: int | None = None) -> int:
        """The order of convergence claimed for the option `order`."""
        chosen = self.order if order is None else order
        return self.claims(chosen) if self.claims else chosen


_SOLVERS: dict[str, Solver] = {}


def solver(
    name: str,
    *,
    order: int,
    space: Space,
    references: Sequence[str] = (),
    summary: str | None = None,
    **facts: Any,
) -> Callable[[Rule], Rule]:
    """Register the decorated rule under `name`; its docstring's first line is the summary unless one is given."""

    def register(rule: Rule) -> Rule:
        if name in _SOLVERS:
            raise ValueError(f"solver {name!r} is registered twice; choose another name")
        text = summary or (inspect.getdoc(rule) or "").split("\n")[0]
        _SOLVERS[name] = Solver(name, rule, order, space, text, tuple(references), **facts)
        return rule

    return register


@functools.cache
def _load_all() -> None:
    package = importlib.import_module("fastsample.solvers")
    for module in pkgutil.iter_modules(package.__path__, "fastsample.solvers."):
        importlib.import_module(module.name)


def available() -> dict[str, Solver]:
    """Every registered solver by name, sorted."""
    _load_all()
    return dict(sorted(_SOLVERS.items()))


def get_solver(name: str) -> Solver:
    """The solver registered as `name`; ValueError with the nearest names otherwise."""
    solvers = available()
    if name not in solvers:
        near = nearest(str(name), solvers)
        asked = f"did you mean {', '.join(near)}?" if near else "it is none of ours."
        raise ValueError(
            f"solver = {name!r} is unknown: {asked} See `fastsample solvers`; names of other programs, as "
            "'euler_ancestral', are scheduler_from_name's"
        )
    return solvers[name]


def plain(name: str) -> str:
    """`name` without case, spaces and punctuation; "++" is "pp"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))


def nearest(text: str, known: Iterable[str]) -> list[str]:
    """Up to three of `known` that few edits make of `text`, the nearest first; none where all are another word."""
    wanted = plain(text)
    edits = {name: distance(wanted, plain(name)) for name in known}
    least = min(edits.values(), default=0)
    close = [name for name in sorted(edits, key=edits.__getitem__) if edits[name] <= least + 1]
    return close[:3] if least <= 1 + len(wanted) // 4 else []


def distance(one: str, other: str) -> int:
    """How many letters must be put in, left out, changed or swapped with the next to make `other` of `one`."""
    before, row = list[int](), list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, start=1):
            least = min(before[j] + 1, row[-1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, last[j - 2] + 1)
            row.append(least)
    return row[-1]


def check_choice(argument: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if isinstance(value, bool) or value not in choices:
        raise ValueError(f"{argument} = {value!r}: use one of {', '.join(map(repr, choices))}")


def check_unit_interval(argument: str, value: float) -> None:
    """Raise ValueError unless 0 < value <= 1."""
    if isinstance(value, (bool, str)) or not 0 < value <= 1:
        raise ValueError(f"{argument} = {value!r}: give a number in (0, 1] (1 means none)")


def check_eta(eta: float) -> None:
    """Raise ValueError unless 0 <= eta <= 1, a sampler's share of the forward process' noise."""
    if isinstance(eta, (bool, str)) or not 0 <= eta <= 1:
        raise ValueError(f"eta = {eta!r}: give a number from 0 (deterministic) to 1 (ancestral, the paper's SDE)")


def log_step(source: Node, target: Node) -> float:
    """h = lam_t - lam_s."""
    return target.lam - source.lam
