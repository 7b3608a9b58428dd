"""What a page holds, and the file that it becomes: no network, nothing beside it, and no script but its own.

Text is escaped wherever it comes from (prompts are anyone's), and a content security policy lets no other script run,
by the hash of ours.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fastsample.bench import style

COLOURS = {
    style.INK: "currentColor",
    style.GRID: "var(--line)",
    style.OTHERS: "var(--faint)",
    style.RECOMMENDED: "var(--best)",
    **{colour: f"var(--ours-{number})" for number, colour in enumerate(style.OURS)},
    **{colour: f"var(--peer-{number})" for number, colour in enumerate(style.PEERS)},
}
"""What a plot takes from the page, which is light or dark."""


@dataclass(frozen=True)
class Cell:
    """Of the table: its text, and what it is sorted by."""

    text: str
    by: float | str | None = None
    best: bool = False


@dataclass(frozen=True)
class Line:
    """Of the table; `kind` is recommended, ours or peer, `of` what it is filtered by."""

    cells: Sequence[Cell]
    kind: str = "ours"
    of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Its columns by name, and the values of each filter in order."""

    columns: Sequence[str]
    lines: Sequence[Line]
    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Chart:
    """A plot, and what a reader has to know."""

    svg: Markup
    note: str


@dataclass(frozen=True)
class Gallery:
    """Pictures of arms by guidance, seed, steps and prompt.

    `images` are data URIs, strips of a picture a prompt; `places` says which one belongs to
    "guidance|seed|steps|arm", by the arm's number, and to "guidance|seed" of the reference. `errors` are texts by
    "guidance|steps|arm".
    """

    arms: Sequence[Mapping[str, str]]
    prompts: Sequence[str]
    guidances: Sequence[str]
    seeds: Sequence[str]
    steps: Sequence[str]
    images: Sequence[str]
    places: Mapping[str, int]
    errors: Mapping[str, str]
    width: int
    height: int
    note: str = ""

    @property
    def data(self) -> dict[str, Any]:
        """What the script reads."""
        names = ("arms", "prompts", "steps", "images", "places", "errors", "width", "height")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Page:
    """`summary` are sentences under heads; `facts` what was run, by name, a line or several."""

    title: str
    lead: str
    summary: Mapping[str, Sequence[Markup | str]]
    table: Table
    charts: Sequence[Chart]
    facts: Mapping[str, Sequence[str]]
    gallery: Gallery | None = None
    remarks: Sequence[str] = ()

    def html(self) -> str:
        """The file."""
        script = _own("page.js")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        environment = Environment(
            loader=FunctionLoader(_own),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        template = environment.get_template("page.html.jinja")
        return template.render(page=self, css=Markup(_own("page.css")), script=Markup(script), digest=digest)


def svg(figure: Figure, label: str, number: int) -> Markup:
    """A figure as an element of the page, in its colours; `number` tells its ids from those of others."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it is for every element of the page
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>chart{number}-", text)
    for colour, own in COLOURS.items():
        text = text.replace(colour, own)
    head = re.match(r"<svg[^>]*>", text)
    assert head is not None
    box = re.search(r'viewBox="[^"]*"', head[0])
    assert box is not None
    opening = Markup('<svg role="img" aria-label="{}" {}>').format(label, Markup(box[0]))
    return Markup(opening + Markup(text[head.end() :].replace("xlink:href", "href")))


def data_uri(webp: bytes) -> str:
    """Of a WebP file."""
    return "data:image/webp;base64," + base64.b64encode(webp).decode()


def _own(name: str) -> str:
    """The text of a file of this folder."""
    return (files("fastsample.bench.page") / name).read_text(encoding="utf-8")
