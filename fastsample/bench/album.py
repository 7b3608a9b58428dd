"""Pictures of a benchmark's cases, kept beside its results: a page shows them without drawing anything again."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from fastsample.bench.record import Record
from fastsample.cache import replacing

PROMPTS = 8
"""Prompts of a case that are kept, the first ones."""
SIDE = 256
"""Pixels of a kept picture's longer side at most."""


@dataclass(frozen=True)
class Strip:
    """Pictures of `width` by `height` side by side, one a prompt, as the bytes of a WebP file."""

    webp: bytes
    prompts: Sequence[str]
    width: int
    height: int


class Album:
    """A WebP file a case in FOLDER/pictures, which FOLDER/pictures.jsonl describes by the keys of the results.

    Without `resume` what is there is not read, as of a :class:`fastsample.bench.record.Record`.
    """

    def __init__(self, folder: Path, *, resume: bool = True) -> None:
        self._folder = folder / "pictures"
        self._record = Record(folder / "pictures.jsonl", resume=resume)

    def __contains__(self, key: str) -> bool:
        return key in self._record.results and self._path(key).is_file()

    def keep(self, key: str, pictures: Tensor, prompts: Sequence[str], **told: Any) -> None:
        """The first of `pictures` [n, 3, h, w] in [0, 1], those of the first prompts; not finite ones are black."""
        prompts = list(prompts[:PROMPTS])
        images = [_image(picture) for picture in pictures[: len(prompts)]]
        width, height = images[0].size
        strip = Image.new("RGB", (width * len(images), height))
        for number, image in enumerate(images):
            strip.paste(image, (number * width, 0))
        out = io.BytesIO()
        strip.save(out, "WEBP", lossless=max(width, height) <= 64, quality=85)
        with replacing(self._path(key)) as partial:
            partial.write_bytes(out.getvalue())
        self._record.append({"key": key, **told, "prompts": prompts, "width": width, "height": height})

    def get(self, key: str) -> Strip | None:
        """What is kept of a case, None where that is nothing."""
        if key not in self:
            return None
        told: Mapping[str, Any] = self._record.results[key]
        if not {"prompts", "width", "height"} <= told.keys():
            return None
        return Strip(self._path(key).read_bytes(), told["prompts"], told["width"], told["height"])

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.webp"


def reference_key(context: str, guidance: float, seed: int) -> str:
    """The key of the converged solution's pictures; `context` is the first word of the results' keys."""
    return f"{context} converged {float(guidance):g} {seed}"


def _image(picture: Tensor) -> Image.Image:
    """[3, h, w] in [0, 1], made smaller where it is large."""
    values = np.nan_to_num(picture.float().permute(1, 2, 0).cpu().numpy(), posinf=0.0, neginf=0.0)
    image = Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))
    image.thumbnail((SIDE, SIDE))
    return image
