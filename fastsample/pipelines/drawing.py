"""One call of a pipeline: its pictures, and the latents as its decoder got them, whatever its sampling loop holds.

Packed, patched or normalised latents are undone by the pipeline's own code on the way to its decoder, and decoded
by it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsample.pipelines.denoisers import inner
from fastsample.pipelines.overlay import class_beneath, overlaid
from fastsample.pipelines.parallel.stepping import next_sample, with_sample
from fastsample.pipelines.request import DECODERS
from fastsample.sampling.ledger import Ledger


@dataclass(frozen=True)
class Drawing:
    """What a call made, on the CPU in float32.

    `pixels` are [n, 3, h, w], or [n, frames, 3, h, w] of videos, in [0, 1]; `latents` of any shape, n first or n
    times frames. Of a pipeline without a decoder, whose samples are pictures, both are the pixels.
    """

    latents: Tensor
    pixels: Tensor

    @property
    def finite(self) -> bool:
        """Whether all latents and pixels are."""
        return bool(torch.isfinite(self.latents).all() and torch.isfinite(self.pixels).all())

    @property
    def stills(self) -> Tensor:
        """[n, 3, h, w]: the pictures; of videos the middle frames."""
        return self.pixels if self.pixels.ndim == 4 else self.pixels[:, self.pixels.shape[1] // 2]


def draw(pipe: Any, call: Mapping[str, Any], ledger: Ledger | None = None) -> Drawing:
    """`pipe(**call)`, where `call` asks for "np". Decoding is left out of the time of `ledger`.

    Raises ValueError where the pipeline returns no pictures.
    """
    seen: list[Tensor] = []
    with _decoding(pipe, seen, ledger):
        result = pipe(**call)
    prompts = call["prompt"]
    pixels = _pixels(result[0], 1 if isinstance(prompts, str) else len(prompts))
    if pixels is None:
        raise ValueError(f"model = {class_beneath(pipe).__name__} returns no images or videos: give one that does")
    return Drawing(torch.cat(seen) if seen else pixels, pixels)


class LastSample:
    """The last sample of a scheduler, as its steps leave it; a given one takes the place of each step's."""

    sample: Tensor

    def __init__(self, given: Tensor | None = None) -> None:
        self._given = given

    def of(self, scheduler: Any) -> contextlib.AbstractContextManager[None]:
        """A block in which the steps of `scheduler` are watched."""
        return overlaid(scheduler, step=self._step)

    def _step(self, beneath: Any, *args: Any, **kwargs: Any) -> Any:
        result = beneath(*args, **kwargs)
        if self._given is not None:
            result = with_sample(result, self._given)
        self.sample = next_sample(result)
        return result


@contextlib.contextmanager
def _decoding(pipe: Any, seen: list[Tensor], ledger: Ledger | None) -> Iterator[None]:
    """In the block, what the pipeline's decoder is given is added to `seen`: in pieces, if it decodes by pieces."""
    name = next((name for name in DECODERS if pipe.components.get(name) is not None), None)
    if name is None:
        yield
        return
    inside = False

    def decode(beneath: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:  # a decoder may call itself, tile by tile
            return beneath(*args, **kwargs)
        given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        inside = True
        try:
            with ledger.left_out() if ledger else contextlib.nullcontext():
                seen.append(given.detach().float().cpu())
                return beneath(*args, **kwargs)
        finally:
            inside = False

    with overlaid(inner(pipe.components[name]), decode=decode):
        yield


def _pixels(output: Any, count: int) -> Tensor | None:
    """What a pipeline returns for `count` prompts as :class:`Drawing` has it; None where these are no pictures."""
    if isinstance(output, (list, tuple)) and output and isinstance(output[0], (list, tuple)):
        output = [np.stack([np.asarray(frame) for frame in frames]) for frames in output]
    if not isinstance(output, Tensor):
        try:
            output = np.stack([np.asarray(part) for part in output])
        except (TypeError, ValueError):
            return None
        if output.ndim not in (4, 5) or output.dtype == object:
            return None
        scale = 255 if output.dtype == np.uint8 else 1
        output = torch.from_numpy(output).movedim(-1, -3) / scale
    pixels: Tensor = output.detach().float().cpu()
    if pixels.ndim == 4 and count == 1 < len(pixels):
        pixels = pixels[None]  # the frames of one video
    return pixels if pixels.ndim in (4, 5) and len(pixels) == count and pixels.shape[-3] in (1, 3, 4) else None
