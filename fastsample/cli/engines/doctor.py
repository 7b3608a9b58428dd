"""Versions, devices, and what works offline."""

from __future__ import annotations

import importlib.metadata
import json
import os
from typing import Any

import torch
from rich.table import Table

from fastsample.bench.context import environment
from fastsample.cache import cache_folder
from fastsample.cli.engines import tables
from fastsample.demo.bundled import model_path
from fastsample.sampling.backend import fuses

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "scipy", "triton")


def report(as_json: bool) -> None:
    """Print the facts."""
    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    table = Table(title="fastsample doctor", show_header=False)
    for name, value in facts.items():
        table.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    tables.show(table)


def gather() -> dict[str, Any]:
    """The facts by name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        **environment(),
        **{name: version(name) for name in PACKAGES},
        "cuda devices": gpus or "none",
        "mps": torch.backends.mps.is_available(),
        "step backend": "triton" if fuses(torch.device("cuda" if gpus else "cpu")) else "torch",
        "offline (HF_HUB_OFFLINE)": os.environ.get("HF_HUB_OFFLINE", "0"),
        "bundled model": "present" if (model_path() / "model_index.json").is_file() else f"missing at {model_path()}",
        "cache": str(cache_folder()),
    }


def version(package: str) -> str:
    """The installed version of `package`, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
