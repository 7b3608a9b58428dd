"""The sampling functions of k-diffusion, where it is installed; its package itself wants training libraries."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import pytest


def sampling() -> Any:
    """`k_diffusion.sampling` under a bare package; the test is skipped without it."""
    found = importlib.util.find_spec("k_diffusion")
    if found is None or not all(importlib.util.find_spec(name) for name in ("torchdiffeq", "torchsde")):
        pytest.skip("k-diffusion, torchdiffeq and torchsde are not installed")
    if "k_diffusion" not in sys.modules:
        package = types.ModuleType("k_diffusion")
        package.__path__ = list(found.submodule_search_locations or [])
        package.__spec__ = found
        sys.modules["k_diffusion"] = package
    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)  # it reads images, which nothing here does
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, sys.modules[name])
    try:
        return importlib.import_module("k_diffusion.sampling")
    finally:
        for name in [
            name for name in sys.modules if name.startswith("torchvision") and not sys.modules[name].__spec__
        ]:
            del sys.modules[name]  # transformers asks whether it is there
