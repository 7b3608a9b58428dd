"""`fastsample bench --decode`: ways to decode the bundled language model, side by side."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastsample.bench import decoding_report
from fastsample.bench.decoding import DecodingBench
from fastsample.bench.record import Record
from fastsample.cli import arguments
from fastsample.cli.command import on_interrupt
from fastsample.cli.engines import common, tables
from fastsample.cli.engines.progress import following
from fastsample.cli.engines.report import put_page
from fastsample.cli.files import check_page, output_folder, place, place_texts
from fastsample.demo.language.loading import load_language_model
from fastsample.names.rules import Method, parse_method

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
        """Run them with progress; print the table, and write the files that are asked for. All is checked first."""
        if report is not None:
            check_page(report)
        methods = [parse_method(rule) for rule in self.rules or RULES]
        arguments.check_once([method.label for method in methods], "rule")
        common.check_device(self.device, self.dtype)
        if self.model is not None and not (Path(self.model) / "training.json").is_file():
            raise ValueError(
                f"--model = {self.model!r}: with --decode give a folder of scripts/train_language.py; "
                "for other models use lm-evaluation-harness (fastsample.bench.harness.harness_model)"
            )
        with output_folder(self.out, alone=True) as folder:
            record = Record(folder / "results.jsonl", resume=self.resume)
            with on_interrupt(record.kept):
                results = self._execute(methods, record)
            tables.show(decoding_report.rich_table(results))
            texts = {
                "results.md": decoding_report.markdown(results) if markdown else None,
                "results.json": json.dumps(results, indent=1) + "\n" if as_json else None,
            }
            kept = [record.path, *place_texts(folder, texts)]
            if plot:
                from fastsample.bench import plots  # Matplotlib: only for --plot

                pareto = functools.partial(plots.decoding_pareto, results)
                kept.append(place(folder, "pareto.png", pareto, again=False))
            print(f"results: {', '.join(map(str, kept))}")
            if report is not None:
                from fastsample.bench.page import decoding  # Matplotlib: only for --report

                print(f"page: {put_page(decoding.page(results), report)}")

    def _execute(self, methods: list[Method], record: Record) -> list[dict[str, Any]]:
        """The results of `methods`, those that are not in the record run."""
        common.quiet()
        dtype = getattr(torch, self.dtype)
        with common.loading(self.model):
            model, tokenizer = load_language_model(dtype, self.device, folder=self.model)
        bench = DecodingBench(model, tokenizer, record, self.problems, self.batch)
        done = sum(bench.result(method) is not None for method in methods)
        for _ in following(bench.run(methods), total=len(methods), done=done, describe=lambda one: one["method"]):
            pass
        return [found for method in methods if (found := bench.result(method)) is not None]
