"""Rows of several batch items that do not begin at the same place."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def visible(outputs: Tensor, states: Tensor) -> Tensor:
    """`outputs` [R, B, C, ..] of the channels that `states` have, without a learned variance."""
    return outputs if outputs.shape == states.shape else outputs[:, :, : states.shape[2]]


def taken(values: Tensor, place: NDArray[np.int64]) -> Tensor:
    """`values` [n, B, ..] at `place` [R, B] of each batch item; a view where all take consecutive ones alike."""
    begin = int(place[0, 0]) if place.size else 0
    if (place == begin + np.arange(len(place))[:, None]).all():
        return values[begin : begin + len(place)]
    index = torch.from_numpy(place).to(values.device)
    return values[index, torch.arange(place.shape[1], device=values.device)]
