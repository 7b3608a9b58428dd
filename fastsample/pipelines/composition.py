"""What of a recipe goes together with what, and why not: the one table, which recipes are checked by."""

from __future__ import annotations

from collections.abc import Collection

PARTS = ("solver", "preset", "guidance_cut", "tgate", "parallel", "compile", "offload")
"""What can be put on a pipeline: parts of a recipe, `torch.compile` of its network, and diffusers' CPU offloading."""

REFUSED: dict[tuple[str, str], str] = {
    ("tgate", "guidance_cut"): "both say when guidance is dropped; use one of them",
    ("tgate", "parallel"): "T-GATE counts sequential steps; use guidance_cut, which knows each row's",
}
"""The pairs that do not go together, with the reason. Any parts of which no two are here do."""


def check_composition(parts: Collection[str]) -> None:
    """Raise ValueError, with the reason, where two of `parts` do not go together."""
    for (first, second), reason in REFUSED.items():
        if {first, second} <= {*parts}:
            raise ValueError(f"{first} and {second}: {reason}")


def composition() -> str:
    """What goes together, as a Markdown table: "yes" is what the parts do one by one, "no" is refused.

    The reasons stand below it. Every cell is held by the tests, with each kind of offloading, and so are all parts
    that go together at once.
    """
    refused = [{*pair} for pair in REFUSED]
    lines = [["", *PARTS[1:]], ["---"] * len(PARTS)]
    for row, first in enumerate(PARTS[:-1]):
        cells = ["no" if {first, second} in refused else "yes" for second in PARTS[row + 1 :]]
        lines.append([f"**{first}**", *[""] * row, *cells])
    table = [f"| {' | '.join(cells)} |" for cells in lines]
    reasons = [f"- {first} and {second}: {reason}." for (first, second), reason in REFUSED.items()]
    return "\n".join([*table, "", *reasons])
