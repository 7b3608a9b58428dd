"""Denoisers of published sizes with random weights, made on the device: a call takes as long."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpu_parts.timing import DEVICE

Arguments = Callable[[int, torch.dtype], dict[str, Any]]
"""The arguments of a call of so many rows."""


@dataclass(frozen=True)
class Size:
    """A denoiser as diffusers configures it."""

    name: str
    kind: str
    config: dict[str, Any]
    arguments: Arguments


def make(size: Size, dtype: torch.dtype) -> nn.Module:
    """The denoiser, in `dtype` from the start: twice its memory would not always fit."""
    import diffusers

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(DEVICE):
            return getattr(diffusers, size.kind).from_config(size.config).to(DEVICE, dtype).eval()
    finally:
        torch.set_default_dtype(before)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=dtype)


def unet(side: int, width: int, pooled: int = 0) -> Arguments:
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


def flux(side: int, channels: int, text: int, width: int, pooled: int) -> Arguments:
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


def wan(channels: int, frames: int, height: int, width: int, text: int, text_width: int) -> Arguments:
    """Latent video of so many `frames`, `text` tokens of `text_width`."""

    def arguments(rows: int, dtype: torch.dtype) -> dict[str, Any]:
        return {
            "hidden_states": random(rows, channels, frames, height, width, dtype=dtype),
            "timestep": torch.linspace(900, 100, rows, device=DEVICE),
            "encoder_hidden_states": random(rows, text, text_width, dtype=dtype),
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
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960}
SIZES = [
    Size("SD1.5 512", "UNet2DConditionModel", SD15, unet(64, 768)),
    Size("SDXL 1024", "UNet2DConditionModel", SDXL, unet(128, 2048, 1280)),
    Size("Flux 1024", "FluxTransformer2DModel", FLUX, flux(64, 64, 512, 4096, 768)),
    Size("Wan 1.3B 480p, 81 frames", "WanTransformer3DModel", WAN, wan(16, 21, 60, 104, 512, 4096)),
]
TINY_SD15 = {**SD15, "sample_size": 16, "block_out_channels": (32,) * 4, "cross_attention_dim": 16}
SMOKE = [
    Size("tiny SD1.5", "UNet2DConditionModel", TINY_SD15, unet(16, 16)),
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
        unet(16, 16, 16),
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
        flux(4, 4, 8, 16, 8),
    ),
    Size(
        "tiny Wan",
        "WanTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "ffn_dim": 32, "text_dim": 16},
        wan(16, 3, 8, 8, 8, 16),
    ),
]
