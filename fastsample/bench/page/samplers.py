"""The page of a benchmark of samplers, from its results and the pictures kept beside them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from fastsample.bench import plots, style
from fastsample.bench.album import Album, Strip, reference_key
from fastsample.bench.page.document import Cell, Chart, Gallery, Line, Page, Table, data_uri, svg
from fastsample.bench.page.facts import facts_of, latest
from fastsample.bench.page.words import in_words
from fastsample.bench.record import Result
from fastsample.bench.report import METRICS, Summary, is_peer, summarise
from fastsample.wording import counted

BOUND = 16_000_000
"""Bytes of pictures in a page at most."""
LEAD = (
    "Samplers side by side: the same model, prompts and noise. An error is the distance of the latents to the "
    "converged solution from the same noise, relative to their spread (0 is the same image); lower is better. ± is "
    "the standard deviation over seeds."
)


def page(results: Sequence[Result], album: Album | None = None, *, best: str = "") -> Page:
    """Of the latest run among `results`; `best` is the recommended arm's label.

    Pictures are those of `album`, whole groups of a guidance scale, a seed and a number of steps, of the first seeds
    first, while they are within BOUND.
    """
    own, remarks = latest(results)
    rows = summarise(own)
    gallery = gallery_of(own, album, best) if album is not None else None
    if gallery is None:
        remarks = [
            *remarks,
            "No pictures: this folder keeps none. The same command, fastsample bench, with --report draws them.",
        ]
    first = own[0]
    seeds = len({result["seed"] for result in own})
    return Page(
        title="fastsample bench",
        lead=f"{LEAD} {counted(first['prompts_count'], 'prompt')}, {counted(seeds, 'seed')}.",
        summary=in_words(rows, keep=best),
        table=table_of(rows, best),
        charts=list(charts_of(rows, best)),
        facts=facts_of(own),
        gallery=gallery,
        remarks=remarks,
    )


def table_of(rows: Sequence[Summary], best: str = "") -> Table:
    """A line an arm at steps and guidance; the least error of those with as many evaluations is bold."""
    metrics = [metric for metric in METRICS if any(metric in row.metrics for row in rows)]
    errors: dict[tuple[float, float], list[float]] = {}
    for row in rows:
        errors.setdefault((row.guidance, row.nfe), []).append(row.mean("latent_rms"))
    least = {cost: min(own) for cost, own in errors.items() if len(own) > 1}
    lines = []
    for row in rows:
        cells = [Cell(row.title, row.title), Cell(f"{row.guidance:g}", row.guidance), Cell(str(row.steps), row.steps)]
        cells.append(Cell(f"{row.nfe:g}", row.nfe))
        for metric in metrics:
            value = row.metrics.get(metric)
            foremost = metric == "latent_rms" and value is not None and value[0] == least.get((row.guidance, row.nfe))
            cells.append(Cell(row.text(metric), value[0] if value else None, foremost))
        of = {"guidance": f"{row.guidance:g}", "steps": str(row.steps)}
        lines.append(Line(cells, kind_of(row.arm, best), of))
    filters = {
        "guidance": [f"{scale:g}" for scale in sorted({row.guidance for row in rows})],
        "steps": [str(steps) for steps in sorted({row.steps for row in rows})],
    }
    heads = ("sampler", "guidance", "steps", "evaluations", *(_head(metric) for metric in metrics))
    return Table(heads, lines, filters)


def charts_of(rows: Sequence[Summary], best: str = "") -> Iterator[Chart]:
    """Errors over evaluations, a plot a guidance scale; of parallel iterations, over rounds too."""
    for number, scale in enumerate(sorted({row.guidance for row in rows})):
        panel = [row for row in rows if row.guidance == scale]
        with style.applied():
            figure = plots.errors(panel, keep=best)
            label = f"Error by model evaluations at guidance {scale:g}"
            yield Chart(svg(figure, label, number), plots.rule_in_words(panel, keep=best))
    groups = itertools.groupby(sorted(rows, key=_case), key=_case)
    for number, ((scale, steps), group) in enumerate(groups, 100):
        parallel = [row for row in group if row.metrics.get("sequential_rms") and row.metrics.get("rounds")]
        if parallel:
            with style.applied():
                figure = plots.rounds_panels(parallel, f"{counted(steps, 'step')}, guidance {scale:g}")
                yield Chart(svg(figure, "Error by rounds, and by evaluations", number), plots.ROUNDS_RULE)


def gallery_of(results: Sequence[Result], album: Album, best: str = "") -> Gallery | None:
    """The pictures of these results; None where there are none."""
    context = results[0]["key"].split()[0]
    rows = summarise(results)
    arms = list(dict.fromkeys(row.arm for row in rows))
    groups: dict[tuple[int, float, int], list[Result]] = {}
    for result in results:
        groups.setdefault((result["seed"], result["guidance"], result["steps"]), []).append(result)
    images: list[str] = []
    places: dict[str, int] = {}
    size, left_out, first = 0, 0, None
    for seed, scale, steps in sorted(groups):
        told = f"{scale:g}|{seed}"
        found: dict[str, Strip | None] = {
            f"{told}|{steps}|{arms.index(result['arm'])}": album.get(result["key"])
            for result in groups[seed, scale, steps]
        }
        if told not in places:
            found[told] = album.get(reference_key(context, scale, seed))
        strips = {place: strip for place, strip in found.items() if strip is not None}
        more = sum(len(strip.webp) for strip in strips.values())
        if size + more > BOUND:
            left_out += len(strips)
            continue
        for place, strip in strips.items():
            first = first or strip
            places[place] = len(images)
            images.append(data_uri(strip.webp))
        size += more
    if first is None:
        return None
    note = f"The first {counted(len(first.prompts), 'prompt')}, at most {BOUND // 1_000_000} MB of pictures"
    note += f": {left_out} of the last seeds and steps are left out." if left_out else "."
    shown = [row for row in rows if any(place.endswith(f"|{row.steps}|{arms.index(row.arm)}") for place in places)]
    titles = {row.arm: row.title for row in rows}
    return Gallery(
        arms=[
            {"name": f"recommended: {titles[arm]}" if arm == best else titles[arm], "kind": kind_of(arm, best)}
            for arm in arms
        ],
        prompts=first.prompts,
        guidances=[f"{scale:g}" for scale in sorted({result["guidance"] for result in results})],
        seeds=[str(seed) for seed in sorted({result["seed"] for result in results})],
        steps=[str(steps) for steps in sorted({row.steps for row in shown})],
        images=images,
        places=places,
        errors={
            f"{row.guidance:g}|{row.steps}|{arms.index(row.arm)}": f"error {row.text('latent_rms')}" for row in rows
        },
        width=first.width,
        height=first.height,
        note=note,
    )


def kind_of(arm: str, best: str = "") -> str:
    """What an arm is, which its colour says."""
    return "recommended" if arm == best else "peer" if is_peer(arm) else "ours"


def _head(metric: str) -> str:
    return {"latent_rms": "error", "gmacs": "GMACs"}.get(metric, METRICS[metric][0])


def _case(row: Summary) -> tuple[float, int]:
    return row.guidance, row.steps
