"""k-diffusion's own sampler functions, where the package is at hand: they need none of its other dependencies."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

VARIABLE = "FASTSAMPLE_K_DIFFUSION"
"""Names a folder made by `pip install --no-deps --target FOLDER k-diffusion torchsde trampoline torchdiffeq`."""


@functools.cache
def k_diffusion_sampling() -> ModuleType:
    """Its module `sampling`, under a bare package: the real one imports wandb and more. Skips the test without it."""
    folder = os.environ.get(VARIABLE)
    spec = importlib.util.find_spec("k_diffusion") if folder is None else None
    package = Path(folder) / "k_diffusion" if folder else Path(spec.origin).parent if spec and spec.origin else None
    if package is None or not package.is_dir():
        pytest.skip(f"k-diffusion is not installed; {VARIABLE} may name a folder with it")
    bare = types.ModuleType("k_diffusion")
    bare.__path__ = [str(package)]
    stand_ins = {"k_diffusion": bare}
    if importlib.util.find_spec("torchvision") is None:  # its module `utils` imports it; no sampler uses it
        for name in ("torchvision", "torchvision.transforms", "torchvision.datasets", "torchvision.utils"):
            stand_ins[name] = types.ModuleType(name)
            stand_ins[name].__spec__ = ModuleSpec(name, None)
        for name in ("transforms", "datasets", "utils"):
            setattr(stand_ins["torchvision"], name, stand_ins[f"torchvision.{name}"])
        stand_ins["torchvision.transforms"].functional = types.ModuleType("functional")  # type: ignore[attr-defined]
    sys.modules.update(stand_ins)
    sys.path.append(str(package.parent))
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ModuleNotFoundError as error:
        pytest.skip(f"k-diffusion misses {error.name}")
    finally:  # by name: what it imported itself stays
        sys.path.remove(str(package.parent))
        for name in stand_ins:
            sys.modules.pop(name, None)
