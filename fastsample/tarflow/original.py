"""Models from the authors' checkpoint files, whose names give their sizes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsample.tarflow.model import TarFlowModel

NAME = re.compile(r"^.+_model_(\d+)_(\d+)_(\d+)_(\d+)_(\d*\.?\d+)$")


def load_original(path: str | Path, **sizes: Any) -> TarFlowModel:
    """The model of an authors' `.pth` file; `sizes` are those of :meth:`TarFlowModel.from_original`.

    Without them they come from the file's name, `{dataset}_model_{patch}_{channels}_{blocks}_{layers}_{noise}.pth`,
    and `num_classes` from the class embedding. Only tensors are unpickled. Raises ValueError, in one line, when sizes
    are unknown, the file holds something else, or keys and shapes are not those of the sizes.
    """
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


def _sizes_in(name: str) -> dict[str, Any]:
    found = NAME.match(name)
    if not found:
        return {}
    keys = ("patch_size", "channels", "num_blocks", "layers_per_block")
    return {**dict(zip(keys, map(int, found.groups()[:4]), strict=True)), "noise_std": float(found.group(5))}
