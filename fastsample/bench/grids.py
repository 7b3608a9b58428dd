"""Pictures side by side: rows with their names, columns with their prompts, a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from fastsample.bench import style

GAP = 0.05


@dataclass(frozen=True)
class Row:
    """Pictures [n, 3, h, w] in [0, 1] beside their name; None leaves a place free."""

    name: str
    pictures: Sequence[Tensor | None]
    colour: str = style.INK


@style.applied()
def image_grid(
    rows: Mapping[str, Tensor] | Sequence[Row], path: Path, prompts: Sequence[str], title: str = ""
) -> None:
    """A row a sampler, a column a prompt; `title` says steps, guidance and seed."""
    if isinstance(rows, Mapping):
        rows = [Row(name, list(pictures)) for name, pictures in rows.items()]
    style.save(table(rows, prompts, title), path)


def table(rows: Sequence[Row], heads: Sequence[str], title: str = "", *, names: float = 1.75) -> Figure:
    """The grid as wide as a page: names of rows take `names` inches of it, heads stand over columns."""
    side = min((style.WIDTH - names) / len(heads), 1.3) - GAP
    shape = next(picture.shape[-2:] for row in rows for picture in row.pictures if picture is not None)
    tall = side * shape[0] / shape[1]
    wrapped = [style.wrapped(head, max(8, int(side * 17))) for head in heads]
    top = 0.14 * max(text.count("\n") + 1 for text in wrapped) + 0.08 + (0.3 if title else 0.0)
    height, width = top + len(rows) * (tall + GAP), names + len(heads) * (side + GAP)
    figure = Figure(figsize=(width, height))
    if title:
        figure.text(0.0, 1.0, title, fontsize=10.5, weight="bold", va="top")
    for column, text in enumerate(wrapped):
        x = names + column * (side + GAP) + side / 2
        figure.text(x / width, 1 - (top - 0.06) / height, text, fontsize=7.5, ha="center", va="bottom")
    for number, row in enumerate(rows):
        bottom = height - top - (number + 1) * (tall + GAP) + GAP
        name = style.wrapped(row.name, int(names * 15))
        at = ((names - 0.12) / width, (bottom + tall / 2) / height)
        figure.text(*at, name, fontsize=8.5, ha="right", va="center", color=row.colour)
        for column, picture in enumerate(row.pictures):
            if picture is not None:
                x = names + column * (side + GAP)
                axis = figure.add_axes((x / width, bottom / height, side / width, tall / height))
                axis.imshow(np.nan_to_num(picture.permute(1, 2, 0).float().numpy()).clip(0, 1))
                axis.set_axis_off()
    return figure


@style.applied()
def strips(images: Mapping[str, Tensor], path: Path, title: str = "", *, most: int = 9) -> None:
    """A row a label: the images [n, 3, H, W] in [0, 1] of its sweeps, the sequential one last.

    Of many sweeps, `most` are shown, closer together at the beginning.
    """
    longest = max(len(row) for row in images.values()) - 1
    shown = sorted({round(float(sweep)) for sweep in np.geomspace(1, longest, min(most, longest))})
    rows = []
    for label, row in images.items():
        made = [row[sweep - 1] if sweep < len(row) else None for sweep in shown]
        rows.append(Row(label, [*made, row[-1]]))
    heads = [*(f"sweep {sweep}" for sweep in shown), "sequential"]
    style.save(table(rows, heads, title, names=1.4), path)


@style.applied()
def side_by_side(
    blocks: Sequence[tuple[str, Sequence[Row]]],
    reference: Row,
    prompts: Sequence[str],
    path: Path,
    title: str,
    note: str,
) -> None:
    """Samplers beside each other in blocks (a number of steps each), the reference last; a row a prompt.

    A row of a block is a sampler, whose name, with its error, stands over its column.
    """
    columns = [row for _, rows in blocks for row in rows] + [reference]
    names, apart = 1.25, 0.16
    side = (style.WIDTH - names - len(blocks) * apart) / len(columns) - GAP
    top = 1.12
    height = top + len(prompts) * (side + GAP)
    figure = Figure(figsize=(style.WIDTH, height))
    figure.text(0.0, 1.0, title, fontsize=10.5, weight="bold", va="top")
    x = names
    for head, rows in [*blocks, ("", [reference])]:
        middle = x + len(rows) * (side + GAP) / 2
        figure.text(middle / style.WIDTH, 1 - 0.3 / height, head, fontsize=9.5, weight="bold", ha="center", va="top")
        for row in rows:
            name = style.wrapped(row.name, int(side * 15))
            at = ((x + side / 2) / style.WIDTH, 1 - (top - 0.07) / height)
            figure.text(*at, name, fontsize=7.5, ha="center", va="bottom", color=row.colour)
            for number, picture in enumerate(row.pictures):
                assert picture is not None
                bottom = height - top - (number + 1) * (side + GAP) + GAP
                place = (x / style.WIDTH, bottom / height, side / style.WIDTH, side / height)
                axis = figure.add_axes(place)
                axis.imshow(np.nan_to_num(picture.permute(1, 2, 0).float().numpy()).clip(0, 1))
                axis.set_axis_off()
            x += side + GAP
        x += apart
    for number, prompt in enumerate(prompts):
        y = height - top - number * (side + GAP) - side / 2
        figure.text(0.0, y / height, style.wrapped(prompt, 20), fontsize=7.5, va="center")
    style.note(figure, note)
    style.save(figure, path)
