"""Pages of results that are there already."""

from __future__ import annotations

from pathlib import Path

from fastsample.bench.album import Album
from fastsample.bench.cases import recommended_arm
from fastsample.bench.page import decoding, samplers
from fastsample.bench.page.document import Page
from fastsample.bench.record import Record, Result
from fastsample.cli.files import place

Kinds = type | tuple[type, ...]
NUMBER, ERROR = (int, float), (int, float, type(None))
SHARED: dict[str, Kinds] = {"environment": dict}
SAMPLERS: dict[str, Kinds] = {
    **SHARED,
    **{"arm": str, "steps": int, "seed": int, "guidance": NUMBER, "nfe": NUMBER, "latent_rms": ERROR, "finite": bool},
    **{"prompts_count": int},
}
DECODING: dict[str, Kinds] = {
    **SHARED,
    **{"method": str, "problems": int},
    **dict.fromkeys(("answers", "valid", "forwards", "forwards_deviation", "tokens_per_forward"), NUMBER),
    **dict.fromkeys(("seconds_1", "seconds_1_deviation", "seconds_8", "seconds_8_deviation"), NUMBER),
}
"""What the lines of each record hold, of those that have a page."""


def write(folder: Path, path: Path) -> None:
    """The page of the folder's results; ValueError for results that are not a benchmark's."""
    results = list(Record(folder / "results.jsonl").results.values())
    if _are(results, SAMPLERS):
        page = samplers.page(results, Album(folder), best=best_of(results))
    elif _are(results, DECODING):
        page = decoding.page(results)
    else:
        raise ValueError(f"folder = {str(folder)!r} has no results of `fastsample bench`: give the --out of one")
    print(f"page: {put_page(page, path)}")


def _are(results: list[Result], kinds: dict[str, Kinds]) -> bool:
    """Whether there are results, all of which hold these."""
    held = (isinstance(result.get(name, ...), kind) for result in results for name, kind in kinds.items())
    return bool(results) and all(held)


def best_of(results: list[Result]) -> str:
    """The recommended arm's label, for the kind of model that the last result is of; empty where it says none."""
    kind = results[-1].get("kind")
    guidance, steps = (max(result[name] for result in results) for name in ("guidance", "steps"))
    return recommended_arm(kind, guidance, steps).label if kind else ""


def put_page(page: Page, path: Path) -> Path:
    """Write it, and where; the next number where another page has the name."""
    return place(path.parent, path.name, lambda file: file.write_text(page.html(), encoding="utf-8"), again=False)
