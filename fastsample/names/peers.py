"""diffusers' own schedulers by the names that people type."""

from __future__ import annotations

from typing import Any

from fastsample.solvers.registry import nearest

COMMON = ["DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete"]
"""Named where no name is near."""


def peer_class(name: str) -> Any:
    """The diffusers scheduler class called `name` or `name`Scheduler; ValueError names the nearest ones."""
    import diffusers  # not for who only reads names

    known = peer_names()
    for candidate in (name, f"{name}Scheduler"):
        if candidate in known:
            return getattr(diffusers, candidate)
    short = [entry.removesuffix("Scheduler") for entry in known]
    near = nearest(name, short) or [one for one in short if name.lower() in one.lower()][:3] or COMMON
    raise ValueError(f"peer = {name!r} is no scheduler class of diffusers: did you mean {', '.join(near)}?")


def peer_names() -> list[str]:
    """The names of diffusers' scheduler classes."""
    import diffusers  # as above

    return [entry for entry in dir(diffusers) if entry.endswith("Scheduler") and not entry.startswith("Flax")]
