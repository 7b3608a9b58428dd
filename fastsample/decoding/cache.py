"""Keys and values that are kept between forwards of a bidirectional model (Fast-dLLM, arXiv:2505.22618)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Caching:
    """What is evaluated after a block's first forward, which is a whole one.

    "prefix": the block and all that follows it, against the keys and values of what stands before. "dual": the block
    alone, against those of both sides. Both are approximations: what is kept does not see tokens committed since.
    refresh: forwards after which the row is evaluated as a whole again; 1 gives what no cache gives.
    """

    kind: Literal["prefix", "dual"]
    refresh: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("prefix", "dual"):
            raise ValueError(f'cache = {self.kind!r}: give "prefix" or "dual"')
        if self.refresh is not None and self.refresh < 1:
            raise ValueError(f"refresh = {self.refresh}: give 1 or more forwards")


class WindowCache:
    """Keys and values of whole sequences, of which a forward over a window replaces a part.

    A model that supports it takes the window's tokens with their `position_ids`, an attention mask over all keys, and
    this as `past_key_values`; each layer calls `update` with the window's keys and values, and attends to the result.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._start, self._write, self._calls = 0, torch.empty(0), 0

    def open(self, start: int, write: Tensor) -> None:
        """The next forward evaluates positions from `start` on; of these, only `write` (bool [B, S]) are replaced."""
        self._start, self._write, self._calls = start, write[:, None, :, None], 0

    def next_layer(self) -> int:
        """The number of a layer, by the order of the calls in a forward: modules may be shared by layers (ALBERT)."""
        self._calls += 1
        return self._calls - 1

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take the window's keys and values [B, heads, S, width]; return those of the whole sequence."""
        if layer == len(self._layers):
            self._layers.append((keys, values))  # the first forward is a whole one
            return keys, values
        window = slice(self._start, self._start + keys.shape[2])
        for kept, new in zip(self._layers[layer], (keys, values), strict=True):
            kept[:, :, window] = torch.where(self._write, new, kept[:, :, window])
        return self._layers[layer]

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]
