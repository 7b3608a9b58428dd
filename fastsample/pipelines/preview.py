"""Pictures of what a run is heading for: the data predictions of its steps, drawn as it goes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastsample.pipelines.latents import autoencoder, decode, pictures_of, unpack

Show = Callable[[list[Image.Image], int], None]
"""`show(images, step)`: what is done with the pictures of a step."""
DECODERS = ("linear", "vae")
SAMPLES, SIDE, FINEST = 8, 16, 2
"""Of the latents that the linear decoder is fitted to: how many, their side, and that of their coarsest."""

_FITTED: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()


class Preview:
    """A `callback_on_step_end` that draws the scheduler's `pred_original_sample`; `images` are the last ones."""

    def __init__(self, show: Show, every: int, decoder: str, height: int | None, width: int | None) -> None:
        self._show, self._every, self._decoder = show, every, decoder
        self._height, self._width = height, width
        self.images: list[Image.Image] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Draws, and gives `callback_kwargs` back as they are. Raises ValueError for schedulers of others."""
        if step % self._every == 0:
            if not hasattr(type(pipe.scheduler), "pred_original_sample"):
                raise ValueError(
                    f"scheduler = {type(pipe.scheduler).__name__} keeps no data prediction: set one of fastsample's"
                )
            data = unpack(pipe, pipe.scheduler.pred_original_sample, self._height, self._width)
            pictures = decode(pipe, data) if self._decoder == "vae" else linear_pictures(pipe, data)
            self.images = to_images(pictures)
            self._show(self.images, step)
        return callback_kwargs


def preview_callback(
    show: Show | None = None,
    *,
    every: int = 1,
    decoder: str = "linear",
    height: int | None = None,
    width: int | None = None,
) -> Preview:
    """A callback that draws what a run is heading for: `pipe(prompt, callback_on_step_end=preview_callback())`.

    It draws the last data prediction of the pipeline's scheduler, one of fastsample's, at each `every`-th step.
    `show(images, step)` gets the pictures; without one they replace each other under the notebook's cell, and
    elsewhere are only kept, in the callback's `images`. `decoder` "linear" draws them at the size of the latents by
    the linear map nearest to the pipeline's autoencoder (:func:`linear_decoder`), which costs next to nothing;
    "vae" by the autoencoder itself. `height` and `width` are the call's, for pipelines that pack their latents, where
    the picture is no square.
    Raises ValueError for other values, and at the first step for a scheduler that keeps no data prediction.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder = {decoder!r}: use 'linear' or 'vae'")
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every = {every!r}: give an integer of at least 1")
    return Preview(show or _notebook(), every, decoder, height, width)


def linear_pictures(pipe: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, h, w] as pictures in [0, 1] of their size, float32, by :func:`linear_decoder`."""
    weights = linear_decoder(autoencoder(pipe)).to(latents.device)
    return (torch.einsum("pc,bchw->bphw", weights[:, :-1], latents.float()) + weights[:, -1, None, None]).clamp(0, 1)


def linear_decoder(vae: Any) -> Tensor:
    """The affine map from a latent to a pixel's red, green and blue that is nearest to `vae`'s decoder, [3, C + 1].

    By least squares over smooth random latents, decoded once for each autoencoder. How near that comes is up to the
    autoencoder: the channels of Stable Diffusion's are close to colours, those of the small bundled one are not.
    """
    if vae not in _FITTED:
        channels = vae.config.latent_channels
        generator = torch.Generator().manual_seed(0)
        sides = [FINEST * 2 ** (index % 3) for index in range(SAMPLES)]
        drawn = [torch.randn(1, channels, side, side, generator=generator) for side in sides]
        smooth = torch.cat([torch.nn.functional.interpolate(own, (SIDE, SIDE), mode="bicubic") for own in drawn])
        coarse = torch.nn.functional.adaptive_avg_pool2d(pictures_of(vae, smooth).cpu(), (SIDE, SIDE))
        known = torch.cat([smooth, torch.ones(SAMPLES, 1, SIDE, SIDE)], 1)
        rows, colours = (part.movedim(1, -1).flatten(0, -2).double() for part in (known, coarse))
        _FITTED[vae] = torch.linalg.lstsq(rows, colours).solution.T.float()
    return _FITTED[vae]


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures in [0, 1] [B, 3, H, W] as PIL images."""
    values = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(value) for value in values]


def _notebook() -> Show:
    """Shows pictures beside each other in the notebook's output, in place of those before; elsewhere does nothing."""
    try:
        from IPython import get_ipython  # not a dependency: present wherever there is a notebook
        from IPython.display import display
    except ModuleNotFoundError:
        return _nothing
    if get_ipython() is None:
        return _nothing
    return functools.partial(_display, display, {})


def _display(display: Callable[..., Any], handles: dict[str, Any], images: list[Image.Image], step: int) -> None:
    del step
    sheet = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    scale = max(1, 256 // sheet.height)
    sheet = sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST)
    if "sheet" in handles:
        handles["sheet"].update(sheet)
    else:
        handles["sheet"] = display(sheet, display_id=True)


def _nothing(images: list[Image.Image], step: int) -> None:
    """Where nobody looks."""
