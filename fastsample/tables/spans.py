"""Between which points each step of a table draws its noise: what a Brownian path is asked for."""

from __future__ import annotations

from fastsample.schedules.base import Node
from fastsample.tables.table import Table

Span = tuple[Node, Node]


def noise_spans(table: Table) -> tuple[Span, ...]:
    """For each step the points between which its noise is drawn; of steps that draw none too.

    That is the step itself, but for a whole step made from a kept "base" whose stages' noise is not in it: there it
    is drawn from the base on, so that it is correlated with that of the stages.
    """
    carried = {name for step in table.steps for name, made in step.states.items() if made.noise}
    spans: list[Span] = []
    base = table.steps[0].node
    for step in table.steps:
        if "base" in step.states:
            base = step.node
        read = {name for name, weight in step.next.states.items() if weight}
        spans.append((base if "base" in read and not read & carried else step.node, step.target))
    return tuple(spans)
