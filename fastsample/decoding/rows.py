"""The state of a run: its unfinished rows, the window of a forward, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import NamedTuple

from torch import Tensor


class Commit(NamedTuple):
    """A token that a forward decided; the mask token where a checking rule takes a draft back."""

    row: int
    position: int
    """In the response."""
    token: int
    forward: int
    """From 1."""


Stream = Callable[[list[Commit]], None]
"""Called after each forward with what it committed."""


@dataclass
class Rows:
    """State of the rows that are not finished: tensors of the device, [A, ..]."""

    tokens: Tensor
    """int64 [A, P + G]: prompt and response."""
    masked: Tensor
    """bool [A, G]: what is undecided."""
    committed_at: Tensor
    """int64 [A, G]: forward of each commit, 0 elsewhere."""
    confidence: Tensor
    """float32 [A, G]: of each commit, or of a draft where it was looked at last; 1 elsewhere."""
    block: Tensor
    """int64 [A]: the first block with something undecided; their number where there is none."""
    step: Tensor
    """int64 [A]: steps made in that block."""
    total: Tensor
    """int64 [A]: what was undecided in it at its first step."""
    age: Tensor
    """int64 [A]: forwards since the key-value cache holds the whole row."""
    seed: Tensor
    """int64 [A, G]: of each position's random numbers."""

    def take(self, rows: Tensor) -> Rows:
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


class Window(NamedTuple):
    """Response positions first .. last - 1 are read; of the sequence, `evaluated` (None: all, without a cache)."""

    first: int
    last: int
    evaluated: slice | None
    write: Tensor | None
    """bool [A, evaluated]: keys and values that are replaced."""
    readable: Tensor | None
    """bool [A, read]: what is of this forward for the row itself."""
