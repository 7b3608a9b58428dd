"""Some rows of a denoiser's call, and its output with the others filled in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastsample.pipelines.denoisers import BATCH_SECOND, latents_of, of_tensors, unbatched
from fastsample.pipelines.guidance.caller import Branches
from fastsample.pipelines.guidance.reading import Branch

LONGER = ("encoder_hidden_states",)
"""Arguments that may have several rows for each of the latents': a text for each frame."""


@dataclass(frozen=True)
class Rows:
    """`chosen` of `total` rows, ascending; in a call where a batch is a list of tensors, `listed`."""

    chosen: Sequence[int]
    total: int
    listed: bool = False

    def cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call with these rows of everything that has the batch's size."""
        return tuple(self._cut("", value) for value in args), {name: self._cut(name, kwargs[name]) for name in kwargs}

    def _cut(self, name: str, value: Any) -> Any:
        if unbatched(name):
            return value
        if name in BATCH_SECOND:
            return _picked(value.transpose(0, 1), self.chosen, self.total).transpose(0, 1)
        if isinstance(value, Tensor):
            batched = value.ndim > 0 and (
                len(value) == self.total or (name in LONGER and not len(value) % self.total)
            )
            return _picked(value, self.chosen, self.total) if batched else value
        if isinstance(value, dict):
            return {key: self._cut(key, part) for key, part in value.items()}
        if isinstance(value, list) and len(value) == self.total and (self.listed or not of_tensors(value)):
            return [value[row] for row in self.chosen]
        if isinstance(value, (list, tuple)):
            return type(value)(self._cut("", part) for part in value)
        return value


_LEFT: ContextVar[tuple[Branch, ...] | None] = ContextVar("left", default=None)
"""The guidance branches that a layer further out has left in the batch."""


class Batch:
    """One call of a denoiser, whose batch is the same `each` rows in every one of its guidance branches, `copies`.

    `narrowed`: it holds fewer of them than the pipeline gave, as a layer further out has left out the others.
    """

    def __init__(
        self, beneath: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], branches: Branches
    ) -> None:
        latents, left = latents_of(args, kwargs), _LEFT.get()
        self._beneath, self.args, self.kwargs, self.branches = beneath, args, kwargs, branches
        self.narrowed, self.copies = left is not None, branches.copies if left is None else left
        self.rows, self._listed = len(latents), isinstance(latents, list)
        self.each, rest = divmod(self.rows, len(self.copies))
        if rest:
            raise ValueError(
                f"the denoiser was called with a batch of {self.rows}, where the pipeline's guidance has "
                f"{len(self.copies)} branches"
            )

    def called_with(self, others: dict[int | str, Any]) -> Batch:
        """The call with other arguments, by place or by name."""
        args = tuple(others.get(place, value) for place, value in enumerate(self.args))
        kwargs = {name: others.get(name, value) for name, value in self.kwargs.items()}
        return Batch(self._beneath, args, kwargs, self.branches)

    def evaluate(self, chosen: Sequence[int]) -> tuple[Rows, Any]:
        """The output for the `chosen` rows, which the network is called with."""
        rows = Rows(chosen, self.rows, self._listed)
        if len(chosen) == self.rows:
            return rows, self._beneath(*self.args, **self.kwargs)
        args, kwargs = rows.cut(self.args, self.kwargs)
        left = _LEFT.set(tuple(self.copies[place] for place in sorted({row // self.each for row in chosen})))
        try:
            return rows, self._beneath(*args, **kwargs)
        finally:
            _LEFT.reset(left)

    def part(self, chosen: Sequence[int], output: Any) -> tuple[Rows, Any]:
        """An `output` for the `chosen` rows."""
        return Rows(chosen, self.rows, self._listed), output


def _picked(value: Tensor, rows: Sequence[int], total: int) -> Tensor:
    """The given ones of `total` rows, each of which may be several of the tensor; a view where that is possible."""
    each, count = len(value) // total, len(rows)
    if list(rows) == list(range(rows[0], rows[0] + count)):
        return value[rows[0] * each : (rows[0] + count) * each]
    if total < count and list(rows) == list(range(total)) * (count // total):
        return torch.cat([value] * (count // total))
    index = torch.as_tensor(rows, device=value.device)
    return value.reshape(total, each, *value.shape[1:])[index].flatten(0, 1)


def gathered(parts: Sequence[tuple[Rows, Any]], wanted: Sequence[int]) -> Any:
    """The output for the rows `wanted`, in that order, from outputs for some; where two have a row, of the later."""
    places: dict[int, int] = {}
    before = 0
    for rows, _ in parts:
        places |= {row: before + index for index, row in enumerate(rows.chosen)}
        before += len(rows.chosen)
    count, listed = len(parts[0][0].chosen), parts[0][0].listed
    if len(parts) == 1 and list(wanted) == list(parts[0][0].chosen):
        return parts[0][1]

    def gather(*outputs: Any) -> Any:
        if isinstance(outputs[0], list):
            joined = [row for output in outputs for row in output]
            return [joined[places[row]] for row in wanted]
        if not isinstance(outputs[0], Tensor) or not outputs[0].ndim:
            return outputs[0]
        each = len(outputs[0]) // count
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return _picked(together, [places[row] for row in wanted], len(together) // each)

    is_batch = (lambda value: isinstance(value, list)) if listed else None
    return tree_map(gather, *[output for _, output in parts], is_leaf=is_batch)
