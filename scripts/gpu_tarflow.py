"""TarFlow decoding on a GPU, in the authors' published sizes with random weights: sequential against a plan.

    python scripts/gpu_tarflow.py --out benchmarks/gpu_tarflow          # every size
    python scripts/gpu_tarflow.py --size afhq256 --batch 8 --dtype bfloat16
    python scripts/gpu_tarflow.py --size tiny --device cpu              # does it run

Random weights make seconds a pass right and sweeps only indicative: how many a trained model needs is its own. Each
result is appended to OUT/results.jsonl as it comes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from fastsample.bench.record import Record
from fastsample.bench.tarflow import FlowBench, markdown
from fastsample.tarflow import TarFlowModel, TarFlowPipeline

SIZES: dict[str, dict[str, Any]] = {  # arXiv:2412.06329, table 1: patch, channels, blocks, layers
    "imagenet128": dict(sample_size=128, patch_size=4, channels=1024, num_classes=1000, noise_std=0.15),
    "imagenet64": dict(sample_size=64, patch_size=4, channels=1024, num_classes=1000, noise_std=0.05),
    "imagenet64-uncond": dict(sample_size=64, patch_size=2, channels=768, noise_std=0.05),
    "afhq256": dict(sample_size=256, patch_size=8, channels=768, num_classes=3, noise_std=0.07),
    "tiny": dict(sample_size=8, patch_size=2, channels=64, num_blocks=2, layers_per_block=1, num_classes=3),
}


def random_model(size: str, spread: float) -> TarFlowModel:
    """The size's model, its output layers drawn so that tokens depend on each other."""
    torch.manual_seed(0)
    model = TarFlowModel(**SIZES[size]).eval().requires_grad_(False)
    for block in model.blocks:
        torch.nn.init.normal_(block.proj_out.weight, std=spread / block.proj_out.in_features**0.5)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", choices=SIZES, help="Default: every size but tiny.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--residual", type=float, default=1e-3)
    parser.add_argument("--spread", type=float, default=0.1, help="Standard deviation of the output layer's outputs.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("results/gpu_tarflow"))
    args = parser.parse_args()
    record = Record(args.out / "results.jsonl")
    for size in args.size or [name for name in SIZES if name != "tiny"]:
        pipe = TarFlowPipeline(random_model(size, args.spread).to(args.device, getattr(torch, args.dtype)))
        named = {"size": size, "dtype": args.dtype}
        results = FlowBench(pipe, record, args.residual, named=named).speed(args.batch, args.repeats)
        print(f"{size}, random weights: sweeps are only indicative\n{markdown(results)}", flush=True)


if __name__ == "__main__":
    main()
