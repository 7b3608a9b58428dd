"""Dynamic thresholding of data predictions (Saharia et al. 2022, arXiv:2205.11487)."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(data: Tensor, ratio: float, max_value: float) -> Tensor:
    """Clip each image to its `ratio` quantile s of |data| and divide by s, with s in [1, `max_value`].

    With `max_value` 1, diffusers' default, this clips to [-1, 1] as Imagen's static thresholding does.
    """
    flat = data.flatten(1)
    limit = quantile(flat.abs(), ratio).clamp(1.0, max_value)
    return (flat.clamp(-limit, limit) / limit).reshape(data.shape)


def quantile(rows: Tensor, ratio: float) -> Tensor:
    """The `ratio` quantile of each row, [B, 1], linear between two values: `torch.quantile` without its limit.

    That takes at most 2^24 values; the rank is a host float64 here, exact for any number of them.
    """
    rank = ratio * (rows.shape[1] - 1)
    low = min(int(rank), max(rows.shape[1] - 2, 0))
    highest = torch.topk(rows, rows.shape[1] - low, dim=1).values
    above = highest[:, -2:-1] if rows.shape[1] > 1 else highest
    return torch.lerp(highest[:, -1:], above, rank - low)
