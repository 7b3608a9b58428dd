"""`fastsample bench --decode`: ways to decode the bundled language model, side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fastsample.bench import decoding_report
from fastsample.bench.decoding import DecodingBench
from fastsample.bench.record import Record
from fastsample.cli import arguments
from fastsample.cli.engines import common
from fastsample.cli.engines.report import put_page
from fastsample.demo.language.loading import load_language_model
from fastsample.names.rules import parse_method

RULES = [
    "low-confidence",
    "low-confidence:steps=48",
    "low-confidence:steps=24",
    "low-confidence:steps=12",
    "margin:steps=24",
    "entropy:steps=24",
    "random:steps=24",
    "origin:steps=24",
    "threshold:confidence=0.99",
    "threshold:confidence=0.9",
    "threshold:confidence=0.7",
    "threshold:confidence=0.5",
    "factor:factor=0.1",
    "factor",
    "entropy-bounded:gamma=0.01",
    "entropy-bounded",
    "entropy-bounded:gamma=0.5",
    "hierarchy",
    "prophet",
    "prophet:thresholds=8/5/3.5,progress=paper",
    "prophet:region=81/5",
    "prophet:thresholds=12/12/12",
    "prophet:thresholds=15/15/15",
    "prophet:thresholds=15/15/15,progress=tokens+threshold:confidence=0.99",
    "lrd",
    "lrd:mixing=0",
    "lrd:refine_steps=0,settled=0+threshold:confidence=0.9",
    "lrd:mixing=0.05,refine_steps=0,settled=0+threshold:confidence=0.99",
    "threshold:confidence=0.9,block=32",
    "prefix+threshold:confidence=0.9,block=32",
    "dual+threshold:confidence=0.9,block=32",
]
"""Full decoding first, which the others are compared with; then every rule, at a few strengths."""


@dataclass
class BenchDecoding:
    """The command: the rules by name (none is all) on `problems` problems of the test split."""

    rules: list[str]
    model: str | None
    problems: int
    batch: int
    dtype: str
    device: str
    out: Path
    resume: bool

    def __call__(self, *, as_json: bool, markdown: bool, plot: bool, report: Path | None = None) -> None:
        """Run them with a progress bar; print the table, and write the files that are asked for."""
        if report is not None:
            arguments.check_page(report)
        results = self._execute()
        Console(width=max(Console().width, 165)).print(decoding_report.rich_table(results))
        if markdown:
            (self.out / "results.md").write_text(decoding_report.markdown(results))
        if as_json:
            (self.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        if plot:
            from fastsample.bench import plots  # Matplotlib: only for --plot

            plots.decoding_pareto(results, self.out / "pareto.png")
        print(f"results: {self.out / 'results.jsonl'}")
        if report is not None:
            from fastsample.bench.page import decoding  # Matplotlib: only for --report

            print(f"page: {put_page(decoding.page(results), report)}")

    def _execute(self) -> list[dict[str, Any]]:
        """All is checked before anything is loaded."""
        methods = [parse_method(rule) for rule in self.rules or RULES]
        arguments.check_least(problems=self.problems, batch=self.batch)
        common.check_device(self.device, self.dtype)
        if self.model is not None and not (Path(self.model) / "training.json").is_file():
            raise ValueError(
                f"--model = {self.model!r}: with --decode give a folder of scripts/train_language.py; "
                "for other models use lm-evaluation-harness (fastsample.bench.harness.harness_model)"
            )
        arguments.writable_folder(self.out)
        common.quiet()

        loaded = load_language_model(getattr(torch, self.dtype), self.device, folder=self.model)
        record = Record(self.out / "results.jsonl", resume=self.resume)
        bench = DecodingBench(*loaded, record, self.problems, self.batch)
        done = sum(bench.result(method) is not None for method in methods)
        common.progress_over(bench.run(methods), total=len(methods), done=done, describe=lambda one: one["method"])
        return [found for method in methods if (found := bench.result(method)) is not None]
