"""Sweeps that evaluate every s-th row of a window, while the states are far from settled anyway."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.fixed_point.rows import taken

Strides = Literal["auto", "none"] | Sequence[int]
"""Of the first sweeps; "none": every sweep evaluates all rows; "auto": by the window (:func:`strides_of`)."""


def near_enough(tolerance: float) -> float:
    """The largest change in a sweep below which "auto" evaluates all rows, in the unit of the tolerance.

    Where no state moves by more than a few times the noise of its step, what is interpolated would be the error, and
    cost more rounds than it spares; at tolerances above a tenth, a sweep of all rows commits many states before that.
    """
    return max(3.0, 30 * tolerance)


def strides_of(strides: Strides, window: int, length: int, tolerance: float = 0.0) -> tuple[int, ...]:
    """The strides of the first sweeps of a `window` over `length` states.

    "auto" begins with b, about the square root of the window: twice b, twice its half, and its third; none for
    windows below 12 or below half of the states, and at tolerances that few sweeps reach. Raises ValueError
    for a stride below 1 or another word.
    """
    if strides == "none":
        return ()
    if strides == "auto":
        if window < max(12, length / 2) or tolerance >= 1:
            return ()
        first = round(0.85 * window**0.5)
        return tuple(stride for stride in (first, first, first // 2, first // 2, first // 3) if stride > 1)
    if isinstance(strides, str) or not all(isinstance(stride, int) and stride >= 1 for stride in strides):
        raise ValueError(f'strides = {strides!r}: give "auto", "none" or the strides of the first sweeps, 1 or more')
    return tuple(strides)


def strided(
    begin: NDArray[np.int64], last: NDArray[np.int64], stride: int, dense: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The places 0 to `last` [B] in windows from `begin` [B] that a sweep evaluates, [R, B].

    The first `dense` [B], the last, and those of rows that `stride` divides, the same from sweep to sweep.
    """
    places = np.arange(int(last.max()) + 1)[:, None]
    asked = ((begin + places) % stride == 0) | (places < dense) | (places == last)
    asked &= places <= last
    count = asked.sum(0)
    order = np.argsort(~asked, axis=0, kind="stable")[: int(count.max())]  # an item's asked places come first
    return np.where(np.arange(len(order))[:, None] < count, order, last)


def calm(change: NDArray[np.float64], final: NDArray[np.int64], tolerance: float) -> NDArray[np.int64]:
    """The places at the next window's beginning [B] that may settle in the next sweep.

    Their states moved by at most 30 tolerances, by the `change` [R, B] in a sweep that committed the first `final`.
    """
    near = (change <= 30 * tolerance) | (np.arange(len(change))[:, None] < final)
    return np.asarray(1 + near.cumprod(0).sum(0) - final)


def dense(stride: int, calm: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many places at a window's beginning [B] a sweep evaluates all of, and so can commit; the `calm` are."""
    return np.maximum(calm, min(stride // 2 + 1, 4))


def filled_in(outputs: Tensor, places: NDArray[np.int64], size: int) -> tuple[Tensor, NDArray[np.bool_]]:
    """Outputs of all `size` places from those at `places` [R, B], linear between them; and where they were given.

    Places past the last take its output.
    """
    every = np.arange(size)[:, None]
    right = np.minimum((places[None] < every[:, None]).sum(1), len(places) - 1)
    given = np.take_along_axis(places, right, 0) == every
    left = np.where(given, right, np.maximum(right - 1, 0))
    begin, end = (np.take_along_axis(places, side, 0) for side in (left, right))
    share = np.divide(every - begin, end - begin, out=np.zeros(begin.shape), where=end > begin).clip(0, 1)
    weight = torch.from_numpy(share).to(outputs.device, torch.promote_types(outputs.dtype, torch.float32))
    weight = weight.reshape(*share.shape, *[1] * (outputs.ndim - 2))
    before, after = taken(outputs, left), taken(outputs, right)
    return torch.lerp(before.to(weight.dtype), after.to(weight.dtype), weight).to(outputs.dtype), given
