"""One model evaluation of a table and what follows it, as weights of the tensors that a step holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsample.schedules.base import Node


@dataclass(slots=True)  # not frozen, which takes five times as long to make; never changed once made
class Combination:
    """A linear combination of the tensors that a step holds; `history[0]` is the previous evaluation's entry."""

    sample: float = 0.0
    output: float = 0.0
    history: tuple[float, ...] = ()
    states: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.0


@dataclass(slots=True)  # as Combination
class Step:
    """One model evaluation at `node`, and what follows it: the next sample (at `target`), entry and states.

    `data` gives the data prediction `(a, b)` of `a sample + b output`.
    """

    node: Node
    target: Node
    next: Combination
    data: tuple[float, float]
    entry: Combination | None = None
    states: Mapping[str, Combination] = field(default_factory=dict)
