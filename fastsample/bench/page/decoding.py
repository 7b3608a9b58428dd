"""The page of a benchmark of ways to decode a language model."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fastsample.bench import plots, style
from fastsample.bench.decoding_report import COLUMNS, cells, frontier
from fastsample.bench.naming import rule_name
from fastsample.bench.page.document import Cell, Chart, Line, Page, Table, svg
from fastsample.bench.page.facts import facts_of, latest
from fastsample.bench.record import Result

SORTED = ("answers", "valid", "forwards", "forwards", "tokens_per_forward", "seconds_1", "seconds_8")
"""What each column of :func:`fastsample.bench.decoding_report.cells` is sorted by."""


def page(results: Sequence[Result]) -> Page:
    """Of the latest run among `results`; forwards are compared with its first way to decode."""
    own, remarks = latest(results)
    full = own[0]
    best = frontier([(result["forwards"], result["valid"]) for result in own])
    lines = []
    for result in own:
        texts = cells(result, full)
        values: list[float] = [result[name] for name in SORTED]
        values[3] = full["forwards"] / result["forwards"]
        named = rule_name(result["method"])
        kind = "recommended" if (result["forwards"], result["valid"]) in best else "ours"
        lines.append(Line([Cell(named, named), *map(Cell, texts, values)], kind))
    with style.applied():
        chart = svg(plots.decoding(own), "Wrong texts and wrong answers by forwards", 0)
    return Page(
        title="fastsample bench --decode",
        lead=f"Ways to decode a language model side by side, on {full['problems']} problems. A forward is a call of "
        "the model. ± of shares is their standard error, of forwards and milliseconds the standard deviation. "
        "Red in the table are the ways that none beats.",
        summary={"Ways that none beats": [_sentence(result, full) for result in _in_order(own, best)]},
        table=Table(["way to decode", *COLUMNS.values()], lines),
        charts=[Chart(chart, plots.DECODING_RULE)],
        facts=facts_of(own),
        remarks=remarks,
    )


def _in_order(results: Sequence[Result], best: Sequence[tuple[float, float]]) -> list[Result]:
    """One result of each point, from few forwards to many."""
    at = {(result["forwards"], result["valid"]): result for result in reversed(results)}
    return [at[point] for point in best]


def _sentence(result: Result, full: Result) -> Markup:
    answers, valid, forwards, fewer, *_ = cells(result, full)
    text = Markup(
        "<strong>{} forwards</strong> a text: <em>{}</em> writes {} of the texts and {} of the answers right, with "
        "{} fewer forwards than {}."
    )
    return text.format(forwards, rule_name(result["method"]), valid, answers, fewer, rule_name(full["method"]))
