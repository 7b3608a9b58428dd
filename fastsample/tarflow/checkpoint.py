"""The tensors of an authors' checkpoint: what config they mean, and whether they are all there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def config_of(state: Mapping[str, Tensor], sizes: dict[str, Any]) -> dict[str, Any]:
    """The config for `sizes`, with the image's size and channels from the tensors' shapes."""
    try:
        tokens, token_dim = state["var"].shape
    except KeyError:
        raise ValueError("state_dict has no 'var': it is no TarFlow checkpoint") from None
    side, patch = math.isqrt(tokens), sizes["patch_size"]
    if side * side != tokens or token_dim % patch**2:
        raise ValueError(f"patch_size = {patch}: does not fit 'var' of shape [{tokens}, {token_dim}]")
    return {**sizes, "sample_size": side * patch, "in_channels": token_dim // patch**2, "head_dim": 64}


def checked(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the attention masks, which follow from the sizes; ValueError unless it is just like `own`."""
    weights = {key: value for key, value in state.items() if not key.endswith(".attn_mask")}
    for kind, keys in (("lacks", own.keys() - weights.keys()), ("has a further", weights.keys() - own.keys())):
        if keys:
            raise ValueError(f"state_dict {kind} {min(keys)!r} ({len(keys)} keys): do the sizes fit the checkpoint?")
    for key, value in own.items():
        if weights[key].shape != value.shape:
            found, need = list(weights[key].shape), list(value.shape)
            raise ValueError(f"state_dict {key!r} has shape {found}, the sizes need {need}")
    return weights
