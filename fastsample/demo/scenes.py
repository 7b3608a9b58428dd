"""Procedural captioned images, 32x32: what the bundled text-to-image model was trained on.

A scene is an object (a shape or a digit) with a colour, a size and a place, on a background. About one
attribute combination in ten is held out of training, chosen by a hash of the combination.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIZE = 32
SUPERSAMPLE = 4
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "colour": ("red", "green", "blue", "yellow", "magenta", "cyan"),
    "object": ("circle", "square", "triangle", "cross", "1", "2", "3", "4", "7"),
    "place": ("left", "right", "top", "bottom", "center"),
    "background": ("black", "white", "grey"),
}
COLOURS = {
    "red": (225, 30, 30),
    "green": (20, 165, 50),
    "blue": (35, 60, 225),
    "yellow": (245, 205, 15),
    "magenta": (215, 40, 205),
    "cyan": (20, 190, 215),
    "black": (12, 12, 12),
    "white": (243, 243, 243),
    "grey": (125, 125, 125),
}
CENTRES = {"left": (10, 16), "right": (22, 16), "top": (16, 10), "bottom": (16, 22), "center": (16, 16)}
DIAMETERS = {"small": 11, "large": 17}


@dataclass(frozen=True)
class Scene:
    """One combination of attributes; each field is one of ATTRIBUTES."""

    size: str
    colour: str
    object: str
    place: str
    background: str

    def __post_init__(self) -> None:
        for name, value in zip(ATTRIBUTES, astuple(self), strict=True):
            if value not in ATTRIBUTES[name]:
                raise ValueError(f"{name} = {value!r}: use one of {', '.join(ATTRIBUTES[name])}")

    @property
    def caption(self) -> str:
        """The prompt that asks for this scene."""
        where = f"at the {self.place} on a {self.background} background"
        return f"a {self.size} {self.colour} {self.object} {where}"

    @classmethod
    def from_caption(cls, caption: str) -> Scene:
        """The scene that a caption describes; ValueError when an attribute is missing."""
        words = caption.lower().split()
        found = {}
        for name, values in ATTRIBUTES.items():
            named = [word for word in words if word in values]
            if len(named) != 1:
                raise ValueError(
                    f"caption = {caption!r}: names {len(named)} {name}s; name one of {', '.join(values)}"
                )
            found[name] = named[0]
        return cls(**found)

    @property
    def labels(self) -> tuple[int, ...]:
        """The index of each attribute's value, in the order of ATTRIBUTES."""
        return tuple(ATTRIBUTES[name].index(value) for name, value in zip(ATTRIBUTES, astuple(self), strict=True))


@functools.cache
def all_scenes(held_out: bool) -> tuple[Scene, ...]:
    """Every combination that was held out of training, or every one that was not."""
    scenes = (Scene(*values) for values in itertools.product(*ATTRIBUTES.values()))
    return tuple(scene for scene in scenes if is_held_out(scene) is held_out)


def is_held_out(scene: Scene) -> bool:
    """Whether the combination was kept out of training (about one in ten)."""
    return zlib.crc32(" ".join(astuple(scene)).encode()) % 10 == 0


def sample_scenes(count: int, seed: int, held_out: bool = False) -> list[Scene]:
    """`count` scenes drawn with replacement from the training (or held-out) combinations."""
    scenes = all_scenes(held_out)
    return [scenes[i] for i in np.random.default_rng(seed).integers(0, len(scenes), count)]


def render(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A 32x32x3 image of the scene; place jitters by a pixel, diameter by 5 %, colours by 8 levels."""
    scale = SUPERSAMPLE
    image = Image.new("RGB", (SIZE * scale, SIZE * scale), _jitter(COLOURS[scene.background], rng))
    x, y = (scale * (c + rng.uniform(-1, 1)) for c in CENTRES[scene.place])
    radius = scale * DIAMETERS[scene.size] * rng.uniform(0.95, 1.05) / 2
    _draw(ImageDraw.Draw(image), scene.object, x, y, radius, _jitter(COLOURS[scene.colour], rng))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def render_batch(scenes: list[Scene], seed: int) -> NDArray[np.float32]:
    """Images [n, 3, 32, 32] in [0, 1]."""
    rng = np.random.default_rng(seed)
    images = np.stack([render(scene, rng) for scene in scenes])
    return np.asarray(images.transpose(0, 3, 1, 2) / 255, dtype=np.float32)


def _jitter(colour: tuple[int, int, int], rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(np.clip(c + rng.integers(-8, 9), 0, 255)) for c in colour)
    return red, green, blue


def _draw(
    draw: ImageDraw.ImageDraw, name: str, x: float, y: float, radius: float, fill: tuple[int, int, int]
) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        draw.ellipse(box, fill=fill)
    elif name == "square":
        half = 0.88 * radius
        draw.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif name == "triangle":
        corners = [
            (x + 1.15 * radius * math.sin(a), y + 0.15 * radius - 1.15 * radius * math.cos(a)) for a in _THIRDS
        ]
        draw.polygon(corners, fill=fill)
    elif name == "cross":
        arm = 0.36 * radius
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=fill)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=fill)
    else:
        font = _font(round(2.7 * radius))
        draw.text((x, y), name, font=font, fill=fill, anchor="mm", stroke_width=max(1, round(0.13 * radius)))


_THIRDS = (0.0, 2 * math.pi / 3, 4 * math.pi / 3)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
