"""What `tune` is asked, checked before anything is evaluated, and the pairs that it makes of prompts and seeds."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastsample.tuning.budget import ENOUGH, Sizes
from fastsample.tuning.oracle import Pair
from fastsample.tuning.pairs import OBJECTIVES
from fastsample.tuning.screen import checked_base

TUNED = 4
"""Pairs given below which nothing is tuned."""
VALIDATING, CHECKING = 8, 16
"""Pairs that validate and that check in the end, at least: further seeds of their prompts where these are fewer."""
SEEDS_APART = 1_000_003
"""Between the seeds of the three sets, which have none in common."""


@dataclass(frozen=True)
class Sets:
    """The pairs tuned on, those that choose, and the fresh ones of the final check."""

    tune: tuple[Pair, ...]
    validation: tuple[Pair, ...]
    check: tuple[Pair, ...]


@dataclass(frozen=True)
class Arguments:
    """The arguments of :func:`fastsample.tuning.tune`; ValueError, in one line, for wrong ones."""

    prompts: tuple[Any, ...]
    steps: tuple[int, ...]
    guidance: tuple[float, ...]
    seeds: tuple[int, ...]
    budget: int
    objective: str
    solver: str | None
    grid_only: bool
    check_prompts: tuple[Any, ...] | None
    batch: int
    quality: Callable[..., Any] | None = field(repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts:
            raise ValueError(f"prompts = {self.prompts!r}: give a list of prompts, at least one")
        for prompt in (*self.prompts, *(self.check_prompts or ())):
            if isinstance(prompt, str) and not prompt.strip():
                raise ValueError("prompts: one is empty; leave it out")
        _numbers("steps", self.steps, int, 2)
        _numbers("seeds", self.seeds, int, 0)
        _numbers("guidance", self.guidance, (int, float), 0)
        _numbers("budget", (self.budget,), int, 1)
        _numbers("batch", (self.batch,), int, 1)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective = {self.objective!r}: use one of {', '.join(OBJECTIVES)}")
        checked_base(self.solver)
        if self.quality is not None and not callable(self.quality):
            raise ValueError(f"quality = {self.quality!r}: give a function of images and prompts, or None")
        if self.pairs < 2:
            raise ValueError(
                f"prompts and seeds make {self.pairs} pair: one says nothing about others, give at least two"
            )

    @property
    def pairs(self) -> int:
        """How many pairs of a prompt and a seed were given."""
        return len(self.prompts) * len(self.seeds)

    @property
    def weights(self) -> bool:
        """Whether more than the grid is tuned."""
        return self.pairs >= ENOUGH and not self.grid_only

    @functools.cached_property
    def sets(self) -> Sets:
        """The pairs of the three sets.

        Prompts of another kind are held out: those at the end of the alphabet for the final check (where no
        `check_prompts` are given), of the rest each third validates. Seeds differ between the sets. With fewer than 4
        prompts all sets have the same ones, and differ in their seeds alone.
        """
        few = len(self.prompts) < 4
        kept = list(self.prompts) if few else sorted(self.prompts, key=str)
        check = list(self.check_prompts or ()) or (kept if few else kept[-(len(kept) // 4) :])
        if not few and not self.check_prompts:
            kept = kept[: -len(check)]
        validation = list(kept) if few else kept[1::3]
        tuned = list(kept) if few else [prompt for index, prompt in enumerate(kept) if index % 3 != 1]
        random.Random(0).shuffle(tuned)  # the first few stand for all where the budget holds no more
        return Sets(
            tuple((prompt, seed) for seed in self.seeds for prompt in tuned),
            self._paired(validation, 1, VALIDATING),
            self._paired(check, 2, CHECKING),
        )

    @property
    def sizes(self) -> Sizes:
        """How many pairs the sets have."""
        sets = self.sets
        return Sizes(len(sets.tune), len(sets.validation), len(sets.check), self.quality is not None)

    def _paired(self, prompts: Sequence[Any], number: int, least: int) -> tuple[Pair, ...]:
        """`prompts` with the seeds of set `number`, and with further ones until there are `least` pairs."""
        count = max(len(self.seeds), math.ceil(least / len(prompts)))
        first = number * SEEDS_APART + max(self.seeds)
        return tuple((prompt, first + turn) for turn in range(count) for prompt in prompts)


def _numbers(name: str, values: Sequence[Any], kind: Any, least: float) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name} = {values!r}: give at least one number")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < math.inf:
            noun = "an integer" if kind is int else "a number"
            raise ValueError(f"{name} = {value!r}: give {noun} of at least {least}")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} = {list(values)}: one is there twice")
