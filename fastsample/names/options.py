"""`key=value` texts of the command line as typed options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST = 2**63
ALIASES = {"true": True, "false": False, "none": None}


def parse_options(pairs: Sequence[str], argument: str) -> tuple[tuple[str, Any], ...]:
    """`key=value` texts as typed pairs: int, float, true, false, none or str.

    Raises ValueError, with the text, for one without a key or value, a key that is there twice, and a number that is
    not finite or has more than 64 bits.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, _, value = (part.strip() for part in pair.partition("="))
        if not (key and value):
            raise ValueError(f"option {pair!r} in {argument!r}: write key=value, as in order=3")
        if key in options:
            raise ValueError(f"option {key} in {argument!r} is there twice: leave one of them out")
        options[key] = parse_value(value)
        if isinstance(options[key], (int, float)) and not abs(options[key]) < MOST:
            raise ValueError(f"option {key} = {value} in {argument!r}: give a finite number of at most 64 bits")
    return tuple(options.items())


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
