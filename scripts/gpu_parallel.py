"""Latency of a denoiser's call by its rows, on a GPU: what a window of steps costs beside a single one.

    python scripts/gpu_parallel.py --out benchmarks/gpu_parallel.json
    python scripts/estimate_parallel.py --rows benchmarks/gpu_parallel.json --results .. --out ..

Denoisers of the sizes of Stable Diffusion 1.5 (512 pixels), SDXL and Flux (1024 pixels), with random weights in
bfloat16: the time of a call does not depend on them. A row is one evaluation; guidance by two branches needs two a
step. Records are appended, one a size and number of rows. `--smoke` runs tiny sizes anywhere. Needs diffusers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_timing import DEVICE, append, environment, times
from torch import Tensor

ROWS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Size:
    """A denoiser as diffusers configures it, and its arguments for a number of rows."""

    name: str
    kind: str
    config: dict[str, Any]
    arguments: Callable[[int, torch.dtype], dict[str, Any]]


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def unet_arguments(side: int, width: int, pooled: int = 0) -> Callable[[int, torch.dtype], dict[str, Any]]:
    """Latents of `side` squared, 77 tokens of `width`, and SDXL's pooled text and sizes where it has them."""

    def arguments(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        added = {
            "text_embeds": random(rows, pooled, dtype=dtype),
            "time_ids": torch.full((rows, 6), 1024.0, device=DEVICE, dtype=dtype),
        }
        return {
            "sample": random(rows, 4, side, side, dtype=dtype),
            "timestep": torch.linspace(900, 100, rows, device=DEVICE),
            "encoder_hidden_states": random(rows, 77, width, dtype=dtype),
            **({"added_cond_kwargs": added} if pooled else {}),
        }

    return arguments


def flux_arguments(
    side: int, channels: int, text: int, width: int, pooled: int
) -> Callable[[int, torch.dtype], dict[str, Any]]:
    """Packed latents of `side` squared tokens, `text` tokens of `width`, pooled text."""

    def arguments(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        places = torch.cartesian_prod(*(torch.arange(side, device=DEVICE, dtype=dtype),) * 2)
        return {
            "hidden_states": random(rows, side * side, channels, dtype=dtype),
            "timestep": torch.linspace(0.9, 0.1, rows, device=DEVICE, dtype=dtype),
            "encoder_hidden_states": random(rows, text, width, dtype=dtype),
            "pooled_projections": random(rows, pooled, dtype=dtype),
            "guidance": torch.full((rows,), 3.5, device=DEVICE, dtype=dtype),
            "img_ids": torch.cat([torch.zeros_like(places[:, :1]), places], 1),
            "txt_ids": torch.zeros(text, 3, device=DEVICE, dtype=dtype),
        }

    return arguments


SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX = {"guidance_embeds": True}
SIZES = [
    Size("SD1.5 512", "UNet2DConditionModel", SD15, unet_arguments(64, 768)),
    Size("SDXL 1024", "UNet2DConditionModel", SDXL, unet_arguments(128, 2048, 1280)),
    Size("Flux 1024", "FluxTransformer2DModel", FLUX, flux_arguments(64, 64, 512, 4096, 768)),
]
SMOKE = [
    Size(
        "tiny SD1.5",
        "UNet2DConditionModel",
        {**SD15, "block_out_channels": (32,) * 4, "cross_attention_dim": 16},
        unet_arguments(16, 16),
    ),
    Size(
        "tiny SDXL",
        "UNet2DConditionModel",
        {
            **SDXL,
            "block_out_channels": (32, 64, 64),
            "attention_head_dim": (1, 2, 2),
            "transformer_layers_per_block": 1,
            "cross_attention_dim": 16,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        },
        unet_arguments(16, 16, 16),
    ),
    Size(
        "tiny Flux",
        "FluxTransformer2DModel",
        {
            **FLUX,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "pooled_projection_dim": 8,
            "axes_dims_rope": (4, 6, 6),
            "in_channels": 4,
        },
        flux_arguments(4, 4, 8, 16, 8),
    ),
]


@torch.inference_mode()
def measure(size: Size, rows: tuple[int, ...], repeats: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A record for each number of rows that fits in the memory."""
    import diffusers

    with torch.device(DEVICE):
        module = getattr(diffusers, size.kind).from_config(size.config).to(DEVICE, dtype).eval()
    records: list[dict[str, Any]] = []
    for count in rows:
        arguments = size.arguments(count, dtype)
        try:
            values = sorted(times(lambda arguments=arguments: module(**arguments, return_dict=False), repeats))
        except torch.OutOfMemoryError:
            print(f"{size.name}: {count} rows do not fit")
            break
        p10, median, p90 = (values[round(q * (len(values) - 1))] for q in (0.1, 0.5, 0.9))
        first = records[0]["median_us"] if records else median
        record = {"model": size.name, "rows": count, "dtype": str(dtype), "repeats": repeats}
        record |= {"median_us": median, "p10_us": p10, "p90_us": p90, "to_one_row": median / first}
        records.append(record)
        milliseconds = " ".join(f"{value / 1e3:9.2f}" for value in (median, p10, p90))
        print(f"{size.name:12}{count:4} rows {milliseconds} ms {median / first:5.2f}")
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the records to this JSON file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes in float32")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if DEVICE.type == "cpu" and not arguments.smoke:
        parser.error("no GPU here: --smoke runs tiny sizes")
    torch.manual_seed(arguments.seed)
    smoke = arguments.smoke
    about = environment(arguments.seed)
    for size in SMOKE if smoke else SIZES:
        dtype = torch.float32 if smoke else torch.bfloat16
        found = measure(size, ROWS[:3] if smoke else ROWS, 3 if smoke else arguments.repeats, dtype)
        if arguments.out:
            append(arguments.out, [{**about, **record} for record in found])


if __name__ == "__main__":
    main()
