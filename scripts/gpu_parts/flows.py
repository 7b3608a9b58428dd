"""TarFlow decoding in the authors' published sizes with random weights: sequential against a plan.

Random weights make seconds a pass right and sweeps only indicative: how many a trained model needs is its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastsample.bench.record import Record as Kept
from fastsample.bench.tarflow import FlowBench
from fastsample.tarflow import TarFlowModel, TarFlowPipeline
from gpu_parts import Part, Record, Setting
from gpu_parts.timing import DEVICE

SIZES: dict[str, dict[str, Any]] = {  # arXiv:2412.06329, table 1: patch, channels, blocks, layers
    "imagenet64": dict(sample_size=64, patch_size=4, channels=1024, num_classes=1000, noise_std=0.05),
    "imagenet128": dict(sample_size=128, patch_size=4, channels=1024, num_classes=1000, noise_std=0.15),
    "afhq256": dict(sample_size=256, patch_size=8, channels=768, num_classes=3, noise_std=0.07),
    "imagenet64-uncond": dict(sample_size=64, patch_size=2, channels=768, noise_std=0.05),
}
SMOKE = {"tiny": dict(sample_size=8, patch_size=2, channels=64, num_blocks=2, layers_per_block=1, num_classes=3)}


def random_model(config: dict[str, Any], spread: float) -> TarFlowModel:
    """The size's model, its output layers drawn so that tokens depend on each other."""
    with torch.device(DEVICE):
        model = TarFlowModel(**config).eval().requires_grad_(False)
    for block in model.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=spread / block.proj_out.in_features**0.5)
    return model.to(DEVICE)


def flows(setting: Setting) -> Iterator[Record]:
    """Sequential decoding, both iterations the same for all blocks, and the automatic plan."""
    sizes = SMOKE if setting.smoke else SIZES
    for name, config in sizes.items():
        pipe = TarFlowPipeline(random_model(config, 0.1))
        with tempfile.TemporaryDirectory() as folder:
            bench = FlowBench(pipe, Kept(Path(folder) / "results.jsonl"), residual=1e-3)
            for result in bench.speed(2 if setting.smoke else 16, 1):
                low, middle, high = result["speedup"]
                yield {
                    "size": name,
                    "batch": result["batch"],
                    "decoding": result["arm"],
                    "seconds": round(result["seconds"], 3),
                    "times_faster": round(middle, 2),
                    "times_faster_q1": round(low, 2),
                    "times_faster_q3": round(high, 2),
                    "passes": result["passes"],
                    "residual": f"{result['residual']:.1e}",
                }
        del pipe


PART = Part(
    "tarflow",
    "How long does TarFlow take at the authors' sizes, random weights, sequential and by a plan?",
    60,
    flows,
    ("size", "batch", "decoding", "seconds", "times_faster", "passes", "residual"),
)
