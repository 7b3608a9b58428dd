"""The parts of `scripts/gpu`: each asks one question, and answers with records as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """How a part is to run: tiny sizes in `smoke`, and `repeats` timed calls of each kind."""

    smoke: bool
    repeats: int
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """A question with its budget of `seconds`. `run` yields records; the time is looked at between two of them.

    `columns` of a record are shown in the table. `needs`: programs that have to be there; "gpu" is one of them.
    """

    name: str
    question: str
    seconds: float
    run: Callable[[Setting], Iterator[Record]]
    columns: tuple[str, ...]
    needs: tuple[str, ...] = ()
