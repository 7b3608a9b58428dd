"""The authors' checkpoints: their names, keys and shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastsample.tarflow.model import TarFlowModel

NAME = re.compile(r"^.+_model_(\d+)_(\d+)_(\d+)_(\d+)_(\d*\.?\d+)$")


def load_original(path: str | Path, **sizes: Any) -> TarFlowModel:
    """The model of an authors' `.pth` file; `sizes` are those of :meth:`TarFlowModel.from_original`.

    Without them they come from the file's name, `{dataset}_model_{patch}_{channels}_{blocks}_{layers}_{noise}.pth`,
    and `num_classes` from the class embedding. Only tensors are unpickled. Raises ValueError, in one line, when sizes
    are unknown, the file holds something else, or keys and shapes are not those of the sizes.
    """
    from fastsample.tarflow.model import TarFlowModel

    path = Path(path)
    known = {**_sizes_in(path.stem), **sizes}
    missing = {"patch_size", "channels", "num_blocks", "layers_per_block", "noise_std"} - set(known)
    if missing:
        raise ValueError(f"{path.name} does not name its sizes: give {', '.join(sorted(missing))}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or unsafe file makes of torch.load
        raise ValueError(f"{path} is no file of tensors: {str(error).splitlines()[0]}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict of tensors")
    embedding = state.get("blocks.0.class_embed")
    known.setdefault("num_classes", 0 if embedding is None else len(embedding))
    return TarFlowModel.from_original(state, **known)


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


def _sizes_in(name: str) -> dict[str, Any]:
    found = NAME.match(name)
    if not found:
        return {}
    keys = ("patch_size", "channels", "num_blocks", "layers_per_block")
    return {**dict(zip(keys, map(int, found.groups()[:4]), strict=True)), "noise_std": float(found.group(5))}
