"""Pages of results that are there already."""

from __future__ import annotations

from pathlib import Path

from fastsample.bench.album import Album
from fastsample.bench.cases import recommended_arm
from fastsample.bench.page import decoding, samplers
from fastsample.bench.page.document import Page
from fastsample.bench.record import Record, Result
from fastsample.cli.files import place

SAMPLERS, DECODING = {"arm", "latent_rms", "nfe", "steps", "guidance", "seed"}, {"method", "forwards", "valid"}
"""What the lines of each record have, of those that have a page."""


def write(folder: Path, path: Path) -> None:
    """The page of the folder's results; ValueError for results that are not a benchmark's."""
    results = list(Record(folder / "results.jsonl").results.values())
    if results and all(result.keys() >= SAMPLERS for result in results):
        page = samplers.page(results, Album(folder), best=best_of(results))
    elif results and all(result.keys() >= DECODING for result in results):
        page = decoding.page(results)
    else:
        raise ValueError(f"folder = {str(folder)!r} has no results of `fastsample bench`: give the --out of one")
    print(f"page: {put_page(page, path)}")


def best_of(results: list[Result]) -> str:
    """The recommended arm's label, for the kind of model that the last result is of; empty where it says none."""
    kind = results[-1].get("kind")
    return recommended_arm(kind, max(result["guidance"] for result in results)).label if kind else ""


def put_page(page: Page, path: Path) -> Path:
    """Write it, and where; the next number where another page has the name."""
    return place(path.parent, path.name, lambda file: file.write_text(page.html(), encoding="utf-8"), again=False)
