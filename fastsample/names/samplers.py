"""What a sampler's name means: AUTOMATIC1111's, Forge's, ComfyUI's, stable-diffusion.cpp's, RES4LYF's, or our own."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace

from fastsample.names.options import parse_options, parse_value
from fastsample.names.programs import (
    A1111,
    COMFYUI,
    GRID_LABELS,
    REFUSED,
    REFUSED_FAMILIES,
    REFUSED_GRIDS,
    RES4LYF,
    SD_CPP,
    NamedSampler,
)
from fastsample.schedules.grids import grid_names, grid_options
from fastsample.solvers.registry import available, distance, nearest, plain

__all__ = [
    "A1111",
    "COMFYUI",
    "GRID_LABELS",
    "RES4LYF",
    "SD_CPP",
    "NamedSampler",
    "parse_sampler_name",
    "sampler_names",
]

SAMPLERS: dict[str, NamedSampler] = {**RES4LYF, **SD_CPP, **COMFYUI, **A1111}
"""By every program's name."""


def parse_sampler_name(name: str) -> NamedSampler:
    """What a sampler name means, alone ("Euler a") or followed by its schedule ("DPM++ 2M SDE Karras").

    Case, spaces and punctuation do not matter, but an underscore says that the name is ComfyUI's; a leading "k_" and
    a trailing "_gpu" are allowed. The schedule may be any grid's name, with options: "euler beta(0.5, 0.7)",
    "dpmpp_2m + karras(rho=5)". Registered solvers are samplers too ("ghvb karras"), alone on the model's own spacing.
    Raises ValueError that says why for samplers that cannot be served, and names the nearest ones for unknown names.
    """
    text, options = _with_options(name)
    samplers = _samplers(first=COMFYUI if "_" in text else A1111)
    found = _sampler(_plain(text), samplers)
    if found and not options:
        return found
    grids = _grids(in_time="_" in text)
    for label in sorted(grids, key=len, reverse=True):
        stem = _plain(text).removesuffix(label)
        sampler = _sampler(stem, samplers) if stem != _plain(text) else None
        if sampler:
            return replace(sampler, grid=grids[label], grid_options=_grid_options(grids[label], options, name))
    if options:
        raise ValueError(f"name = {name!r}: options in brackets are of a grid, as in 'euler beta(0.5, 0.7)'")
    _refuse(name, text)
    near = _near(text)
    asked = (
        f"did you mean {', '.join(map(repr, near))}?" if near else "give a sampler, as 'Euler a', and perhaps a grid."
    )
    raise ValueError(f"name = {name!r} is unknown: {asked} `fastsample solvers --names` lists them")


def sampler_names() -> list[str]:
    """Every name understood but for our own: each sampler alone, and with each schedule."""
    return [*SAMPLERS, *(f"{sampler} {grid}" for sampler in SAMPLERS for grid in GRID_LABELS)]


def _samplers(first: Mapping[str, NamedSampler]) -> dict[str, NamedSampler]:
    """By plain names: those of `first` win, registered solvers are last."""
    own = {_plain(known): NamedSampler(known, grid=None) for known in available()}
    named = [*SAMPLERS.items(), *first.items()]
    return own | {_plain(known): sampler for known, sampler in named}


def _sampler(text: str, samplers: Mapping[str, NamedSampler]) -> NamedSampler | None:
    candidates = (text, text.removeprefix("k"), text.removesuffix("gpu"), text.removeprefix("k").removesuffix("gpu"))
    return next((samplers[candidate] for candidate in candidates if candidate in samplers), None)


def _grids(in_time: bool) -> dict[str, str]:
    """Grids by plain names, the programs' and ours; `in_time`: ComfyUI lays its "beta" out in time."""
    grids = {_plain(name): name for name in grid_names()} | {_plain(name): grid for name, grid in GRID_LABELS.items()}
    return grids | ({"beta": "beta-time"} if in_time else {})


def _with_options(name: str) -> tuple[str, str | None]:
    """The name, and what stands in brackets after it; None where nothing does."""
    match = re.fullmatch(r"([^()]*)(?:\(([^()]*)\))?\s*", name) if isinstance(name, str) else None
    if match is None:
        raise ValueError(
            f"name = {name!r} is unknown: give a sampler's name, as 'DPM++ 2M Karras' or 'dpmpp_2m beta'"
        )
    return match[1], match[2]


def _grid_options(grid: str, text: str | None, name: str) -> dict[str, float]:
    """Options of a grid by name or in order: "rho=5", "0.5, 0.7"."""
    known, made = list(grid_options(grid)), dict[str, float]()
    for index, part in enumerate(text.split(",") if text else []):
        key, value = (
            parse_options([part], name)[0]
            if "=" in part
            else (known[index] if index < len(known) else f"number {index + 1}", parse_value(part.strip()))
        )
        if key not in known:
            has = f"has {', '.join(known)}" if known else "has no options"
            raise ValueError(f"name = {name!r}: {key} is unknown, the {grid} grid {has}")
        made[key] = value
    return made


def _refuse(name: str, text: str) -> None:
    """Raise ValueError, with the reason, for samplers and grids that are known and not served."""
    said = _plain(text)
    labels = ["", *_grids(in_time=False)]
    for known, reason in REFUSED.items():
        if any(said == _plain(known) + label for label in labels):
            raise ValueError(f"name = {name!r} is no drop-in scheduler: {reason}")
    for known, reason in REFUSED_GRIDS.items():
        if said.endswith(_plain(known)):
            raise ValueError(f"name = {name!r} has no such schedule here: {reason}")
    for pattern, reason in REFUSED_FAMILIES:
        if re.fullmatch(pattern, text.strip().lower()):
            raise ValueError(f"name = {name!r} is not served: {reason}")


def _near(text: str) -> list[str]:
    """The names nearest to `text`, split before any of its words into a sampler and perhaps a grid."""
    words = re.split(r"[ _/]+|(?<!\+)\+(?!\+)", text.strip())
    style = COMFYUI if "_" in text else A1111
    names = {
        **{plain(known): known for known in (*available(), *SAMPLERS)},
        **{plain(known): known for known in style},
    }
    labels = {plain(known): known for known in GRID_LABELS}
    found: dict[str, int] = {}
    for count in range(1, len(words) + 1):
        left, right = plain("".join(words[:count])), plain("".join(words[count:]))
        for sampler, grid in itertools.product(nearest(left, names), nearest(right, labels) if right else [""]):
            said = f"{names[sampler]} {labels[grid]}" if grid else names[sampler]
            off = distance(left, sampler) + distance(right, grid)
            found[said] = min(off, found.get(said, off))
    least = min(found.values(), default=0)
    return [said for said in sorted(found, key=found.__getitem__) if found[said] <= least + 1][:3]


def _plain(name: str) -> str:
    """As :func:`fastsample.solvers.registry.plain`, without the folders of RES4LYF's names."""
    return plain(re.sub(r"^(multistep|exponential|hybrid|linear|(fully|diag)_implicit)/", "", name.strip().lower()))
