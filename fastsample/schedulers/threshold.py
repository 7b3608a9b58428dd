"""Dynamic thresholding of data predictions (Saharia et al. 2022, arXiv:2205.11487)."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold(data: Tensor, ratio: float, max_value: float) -> Tensor:
    """Clip each image to its `ratio` quantile s of |data| and divide by s, with s in [1, `max_value`].

    With `max_value` 1, diffusers' default, this clips to [-1, 1] as Imagen's static thresholding does.
    """
    flat = data.flatten(1)
    limit = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(1.0, max_value)
    return (flat.clamp(-limit, limit) / limit).reshape(data.shape)
