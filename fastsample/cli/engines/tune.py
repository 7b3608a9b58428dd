"""A sampler tuned from the command line: progress while it runs, a table of what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fastsample.cli.engines import tables
from fastsample.cli.engines.progress import counting
from fastsample.pipelines.parallel.distributed import process_state
from fastsample.tables.preset import Compared, Preset
from fastsample.tuning import tune
from fastsample.wording import counted


def tuned(
    pipe: Any,
    prompts: Sequence[str],
    check_prompts: Sequence[str] | None,
    asked: Mapping[str, Any],
    folder: Path | None,
    out: Path,
) -> Preset | None:
    """The preset, written to `out`; None in processes other than the first."""
    first = process_state() is None or process_state().is_main_process

    def run(tell: Callable[[str], None]) -> Preset:
        return tune(pipe, prompts, **asked, check_prompts=check_prompts, folder=folder, report=tell)

    preset = counting(run) if first else run(lambda text: None)
    if not first:
        return None
    preset.save(out)
    return preset


def report(preset: Preset | None, out: Path, as_json: bool) -> None:
    """Print the preset as JSON, or what each entry gains."""
    if preset is None:
        return
    if as_json:
        print(preset.to_json())
        return
    table = Table(title=f"{preset.model_name}: error to the converged latents, on fresh pairs")
    for name in ("guidance", "evaluations", "untuned", "", "tuned", "", "ratio, at most", "calls"):
        table.add_column(name)
    for entry in preset.entries:
        final = entry.final
        base = f"{entry.solver} {entry.grid}, {entry.stage}"
        upper = f"{entry.upper:.2f}" if entry.upper is not None else "-"
        before, after = _error(final, "untuned"), _error(final, "tuned")
        cell = f"{entry.guidance:g}", str(entry.evaluations)
        table.add_row(*cell, entry.untuned, before, base, after, upper, str(entry.calls))
    tables.show(table)
    for entry in preset.entries:
        print(f"guidance {entry.guidance:g}, {counted(entry.evaluations, 'evaluation')}: {entry.verdict}")
    print(f"preset: {out}")


def _error(compared: Compared | None, which: str) -> str:
    return "-" if compared is None else f"{getattr(compared, which):.4f}"
