"""What to expect: of a benchmark, the time it takes; of parallel sampling, the speed-up, from measured rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Clock:
    """How long cases that are expected to take `seconds` each will still take, corrected by how long they took."""

    seconds: Sequence[float]
    _done: int = 0
    _started: float = field(default_factory=time.perf_counter)

    def tick(self) -> None:
        """The next case is done."""
        self._done += 1

    @property
    def left(self) -> str:
        """In words."""
        done, rest = sum(self.seconds[: self._done]), sum(self.seconds[self._done :])
        pace = (time.perf_counter() - self._started) / done if done else 1.0
        return in_words(rest * pace)


def in_words(seconds: float) -> str:
    """A time to wait: in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.0f} h"


@dataclass(frozen=True)
class RowCost:
    """Measured seconds of a denoiser call by its rows: linear between measurements, proportional beyond them.

    Raises ValueError without the cost of one row, or for a cost that is not positive.
    """

    seconds: Mapping[int, float]

    def __post_init__(self) -> None:
        if 1 not in self.seconds or not all(value > 0 for value in self.seconds.values()):
            raise ValueError(
                f"seconds = {dict(self.seconds)}: give positive seconds by rows, that of 1 row among them"
            )

    @classmethod
    def saturating(cls, free_rows: int) -> RowCost:
        """A device that evaluates up to `free_rows` rows in the time of one, which is 1, and more in proportion."""
        return cls({1: 1.0, free_rows: 1.0})

    def __call__(self, rows: int) -> float:
        """Seconds of a call of `rows`."""
        known = sorted(self.seconds)
        for low, high in pairwise(known):
            if low <= rows <= high:
                share = (rows - low) / (high - low)
                return (1 - share) * self.seconds[low] + share * self.seconds[high]
        return self.seconds[known[-1]] * rows / known[-1]


def expected_speedup(
    steps: int, rounds: float, rows: int, cost: RowCost, *, devices: int = 1, gather: float = 0.0
) -> float:
    """Sequential seconds over parallel ones: `steps` calls of one row to one plain step and `rounds - 1` sweeps.

    A sweep evaluates `rows` shared by `devices`, whose outputs are gathered in `gather` seconds. The solver's
    arithmetic and what a pipeline does around a call are not in it. Raises ValueError for numbers below 1.
    """
    for name, value in (("steps", steps), ("rounds", rounds), ("rows", rows), ("devices", devices)):
        if value < 1:
            raise ValueError(f"{name} = {value}: give 1 or more")
    share = -(-rows // devices)
    sweep = cost(share) + (gather if devices > 1 else 0.0)
    return steps * cost(1) / (cost(1) + (rounds - 1) * sweep)
