"""`fastsample report`: a page of what a benchmark left in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastsample.cli.files import check_page


def report(
    folder: Annotated[Path, typer.Argument(help="What `fastsample bench --out` was, with --decode or without.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: page.html in that folder.")] = None,
) -> None:
    """One HTML file of a benchmark's results: words, table, plots, and the pictures of every sampler side by side.

    Nothing is run again. The page needs no network and no other file. Of several runs in the folder it is the latest
    one's; pictures are the first 8 prompts', 256 pixels wide at most, 16 MB in all.
    """
    path = folder / "page.html" if out is None else out
    results = folder / "results.jsonl"
    if not results.is_file():
        raise ValueError(f"folder = {str(folder)!r} has no results.jsonl: give the --out of `fastsample bench`")
    check_page(path, "--out")
    from fastsample.cli.engines import report as engine  # torch and Matplotlib: not for --help

    engine.write(folder, path)
