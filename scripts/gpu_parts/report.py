"""The records of `scripts/gpu` as one Markdown page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsample.bench.report import markdown_table
from gpu_parts import Part


def markdown(folder: Path, parts: Sequence[Part]) -> str:
    """A table for each part that has a record in `folder`, in the parts' order."""
    pages = ["# On a GPU\n\nMade by `scripts/gpu`; times with quartiles in brackets.\n"]
    for part in parts:
        path = folder / f"{part.name}.json"
        if path.exists():
            pages.append(_section(part, json.loads(path.read_text())))
    return "\n".join(pages)


def _section(part: Part, found: dict[str, Any]) -> str:
    about = found["about"]
    machine = f"{about['device']}, torch {about['torch']}, triton {about['triton']}, diffusers {about['diffusers']}"
    commit = (about["commit"] or "unknown")[:9]
    head = f"## {part.name}\n\n{part.question} {machine}, commit {commit}, {found['seconds']} s"
    head += f"; stopped: {found['stopped']}.\n" if found["stopped"] else ".\n"
    records = found["records"]
    columns = [name for name in part.columns if any(name in record for record in records)]
    rows = [[_cell(record, name) for name in columns] for record in records]
    return f"{head}\n{markdown_table(columns, rows)}\n" if rows else head


def _cell(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    low, high = record.get(f"{name}_q1"), record.get(f"{name}_q3")
    return f"{value:g} ({low:g}, {high:g})" if low is not None and high is not None else str(value)
