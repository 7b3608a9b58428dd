"""A benchmark of samplers in sentences: what is nearest to the converged solution, and what that saves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from fastsample.bench.report import Summary, is_peer
from fastsample.wording import counted

ERROR = "latent_rms"


def in_words(rows: Sequence[Summary], *, keep: str = "") -> dict[str, list[Markup]]:
    """Sentences by guidance scale; `keep` is the recommended arm."""
    found = {}
    for scale in sorted({row.guidance for row in rows}):
        own = [row for row in rows if row.guidance == scale]
        plain = [row for row in own if not _accelerated(row)]
        sentences = [_at_cost(group, plain, keep) for group in _by_cost(plain)]
        sentences += _rounds(own) + _gates(own)
        found["Without guidance" if scale == 1 else f"Guidance {scale:g}"] = sentences
    return found


def _at_cost(group: Sequence[Summary], rows: Sequence[Summary], keep: str) -> Markup:
    """The nearest of those with as many evaluations, and the nearest of diffusers', or of ours, with no more."""
    best = min(group, key=_error)
    steps = counted(best.steps, "step")
    steps = f"{counted(best.nfe, 'evaluation')} ({steps})" if best.nfe != best.steps else steps
    if math.isinf(_error(best)):
        return Markup("<strong>{}</strong>: every sampler diverged.").format(steps)
    text = Markup("<strong>{}</strong>: {} has the least error, {}").format(steps, _named(best, keep), _value(best))
    camp = [row for row in rows if row.nfe <= best.nfe and is_peer(row.arm) != is_peer(best.arm)]
    others = [row for row in camp if row.nfe == best.nfe] or camp
    if not others:
        return text + "."
    rival, whose = min(others, key=_error), "ours" if is_peer(best.arm) else "diffusers'"
    if math.isinf(_error(rival)):
        return text + Markup("; {} diverged.").format(whose)
    text += Markup("; the best of {}, {}, has {}").format(whose, _named(rival, keep), _value(rival))
    if _error(rival) - _error(best) <= math.hypot(_spread(best), _spread(rival)):
        return text + ", which is within the spread."
    camp = [row for row in rows if is_peer(row.arm) == is_peer(rival.arm)]
    return text + Markup(" and {}.").format(_needs(best, camp))


def _needs(best: Summary, rows: Sequence[Summary]) -> str:
    """How many steps those `rows` take to an error that small, by what was measured of the best at each number."""
    nearest = {steps: min(_error(row) for row in rows if row.steps == steps) for steps in {row.steps for row in rows}}
    enough = [steps for steps, error in nearest.items() if error <= _error(best)]
    if not enough:
        return f"is not as near with {counted(max(nearest), 'step')}, the most that were run"
    too_few = [steps for steps in nearest if steps < min(enough)]
    between = f"{max(too_few)} to {min(enough)}" if too_few else f"at most {min(enough)}"
    return f"takes {between} steps to be as near"


def _rounds(rows: Sequence[Summary]) -> list[Markup]:
    """Of parallel iterations: the fewest rounds of those within 1 % of the sequential result, at the most steps."""
    most = max(row.steps for row in rows)
    near = [row for row in rows if row.steps == most and row.mean("sequential_rms") <= 0.01 and row.mean("rounds")]
    if not near:
        return []
    best = min(near, key=lambda row: row.mean("rounds"))
    text = Markup(
        "<strong>{} steps at once</strong>: {} makes them in {} rounds, {:.1f} times fewer, {} from the sequential "
        "result, for {:.1f} times the evaluations."
    )
    fewer, more = most / best.mean("rounds"), best.nfe / (most * (1 if best.guidance == 1 else 2))
    return [text.format(most, _named(best), best.text("rounds"), fewer, best.text("sequential_rms"), more)]


def _gates(rows: Sequence[Summary]) -> list[Markup]:
    """Of gates: what each saves at the most steps, and how far it goes from its solver alone."""
    most = max(row.steps for row in rows)
    gated = [row for row in rows if row.steps == most and row.metrics.get("ungated_rms")]
    text = Markup(
        "<strong>{} steps</strong>: {} saves {:.0%} of the multiply-accumulates and goes {} from its solver alone."
    )

    def saved(row: Summary) -> float:
        return row.mean("saved_by_guidance") + row.mean("saved_by_caching")

    nearest = sorted(gated, key=lambda row: row.mean("ungated_rms"))[:3]
    return [text.format(most, _named(row), saved(row), row.text("ungated_rms")) for row in nearest]


def _by_cost(rows: Sequence[Summary]) -> list[list[Summary]]:
    """Arms of as many evaluations together, from few to many; one alone where none is as near with fewer."""
    groups: dict[float, list[Summary]] = {}
    for row in rows:
        groups.setdefault(row.nfe, []).append(row)
    return [
        groups[nfe]
        for nfe in sorted(groups)
        if len(groups[nfe]) > 1 or min((row for row in rows if row.nfe <= nfe), key=_error).nfe == nfe
    ]


def _accelerated(row: Summary) -> bool:
    return any(metric in row.metrics for metric in ("ungated_rms", "sequential_rms"))


def _named(row: Summary, keep: str = "") -> Markup:
    return Markup("<em>{}</em>").format(f"{row.title} (recommended)" if row.arm == keep else row.title)


def _value(row: Summary) -> str:
    return row.text(ERROR)


def _error(row: Summary) -> float:
    return row.mean(ERROR)


def _spread(row: Summary) -> float:
    value = row.metrics.get(ERROR)
    return value[1] if value else 0.0
