"""Between pictures and the latents that a pipeline's loop holds, by the pipeline's own autoencoder and packing."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PACKED = ("latents", "batch_size", "num_channels_latents", "height", "width")
"""The arguments of `_pack_latents` of Flux and 30 pipelines like it: 2 x 2 latents a token."""


def encode(pipe: Any, image: Any) -> tuple[Tensor, int, int]:
    """`image` (PIL, a list of them, an array, or a tensor in [0, 1] [B, 3, H, W]) as latents; its height and width.

    The mean of what the autoencoder says; on the pipeline's device, in its dtype, scaled and packed as its loop has
    them. Raises ValueError where the pipeline has no autoencoder of still pictures.
    """
    vae = autoencoder(pipe)
    pixels, dtype = pipe.image_processor.preprocess(image), vae.dtype
    height, width = pixels.shape[-2:]
    with _upcast(vae), torch.no_grad():
        encoded = vae.encode(pixels.to(pipe._execution_device, vae.dtype))
    distribution = getattr(encoded, "latent_dist", None)  # TAESD's are the latents
    latents = encoded.latents if distribution is None else distribution.mode()
    latents = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
    return pack(pipe, latents.to(dtype)), height, width


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Unpacked latents as pictures in [0, 1], float32 [B, 3, H, W], by the pipeline's autoencoder."""
    return pictures_of(autoencoder(pipe), latents)


def pictures_of(vae: Any, latents: Tensor) -> Tensor:
    """The same by the autoencoder `vae` of still pictures, on its device."""
    with _upcast(vae), torch.no_grad():
        latents = latents.to(vae.device, vae.dtype)
        scaled = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        pictures: Tensor = vae.decode(scaled, return_dict=False)[0]
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


@contextlib.contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """In the block an autoencoder that overflows in half precision, as SDXL's does, is in float32."""
    half = vae.config.get("force_upcast") and vae.dtype == torch.float16
    if half:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if half:
            vae.to(torch.float16)


def pack(pipe: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] as the pipeline's loop has them. Raises ValueError for packings that are not Flux's."""
    if not hasattr(pipe, "_pack_latents"):
        return latents
    _check_packing(pipe)
    packed: Tensor = pipe._pack_latents(latents, *latents.shape)
    return packed


def unpack(pipe: Any, latents: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
    """Latents of the pipeline's loop as [B, C, h, w].

    `height` and `width` are those of the picture; without them packed ones are taken for a square.
    Raises ValueError where they are not, and for packings that are not Flux's.
    """
    if latents.ndim == 4:
        return latents
    if latents.ndim != 3 or not hasattr(pipe, "_unpack_latents"):
        raise ValueError(
            f"latents have shape {tuple(latents.shape)}, which is none of pictures that {type(pipe).__name__} unpacks"
        )
    _check_packing(pipe)
    scale = pipe.vae_scale_factor
    if height is None or width is None:
        side = math.isqrt(latents.shape[1])
        if side**2 != latents.shape[1]:
            raise ValueError(
                f"height, width = {height}, {width}: the {latents.shape[1]} tokens are of no square; give both"
            )
        height = width = 2 * side * scale
    if (height // (2 * scale)) * (width // (2 * scale)) != latents.shape[1]:
        raise ValueError(
            f"height, width = {height}, {width}: not those of {latents.shape[1]} tokens; give the call's"
        )
    unpacked: Tensor = pipe._unpack_latents(latents, height, width, scale)
    return unpacked


def autoencoder(pipe: Any) -> Any:
    """The pipeline's autoencoder of still pictures; ValueError where it has none with one scaling factor."""
    vae = getattr(pipe, "vae", None)
    convolution = next((part for part in vae.modules() if isinstance(part, torch.nn.Conv3d)), None) if vae else None
    still = convolution is None and hasattr(pipe, "image_processor")  # others have a video_processor
    if vae is None or not still or vae.config.get("scaling_factor") is None:
        reason = "no vae" if vae is None else f"a {type(vae).__name__}, and none of still pictures with one scale"
        raise ValueError(f"pipe = {type(pipe).__name__} has {reason}: encode and decode by yourself")
    return vae


def _check_packing(pipe: Any) -> None:
    parameters = tuple(inspect.signature(pipe._pack_latents).parameters)
    if parameters != PACKED:
        raise ValueError(
            f"pipe = {type(pipe).__name__} packs its latents by ({', '.join(parameters)}), which is not known here"
        )
