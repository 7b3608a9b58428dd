"""`key=value` texts of the command line as typed options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ALIASES = {"true": True, "false": False, "none": None}


def parse_options(pairs: Sequence[str], argument: str) -> tuple[tuple[str, Any], ...]:
    """`key=value` texts as typed pairs: int, float, true, false, none or str."""
    options = []
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise ValueError(f"option {pair!r} in {argument!r}: write key=value, as in order=3")
        options.append((key.strip(), parse_value(value.strip())))
    return tuple(options)


def parse_value(text: str) -> Any:
    """The Python value that a command-line text means."""
    if text.lower() in ALIASES:
        return ALIASES[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
