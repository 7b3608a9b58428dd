"""Words for what is told to people."""

from __future__ import annotations


def counted(count: float, noun: str, plural: str = "") -> str:
    """`count` and the noun that goes with it: "1 step", "0 steps", "2.5 passes" (where `plural` is "passes")."""
    number = f"{count:g}" if isinstance(count, float) else str(count)
    return f"{number} {noun if number == '1' else plural or noun + 's'}"
