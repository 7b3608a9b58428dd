"""Which order each evaluation's update has: warm-up, lowered final steps, single-step blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from fastsample.schedules.base import Node

Variable = Literal["lam", "sbar"]
"""log(alpha / sigma), of exponential integrators; sigma / alpha, of Adams' methods."""
LowerFinal = bool | int
"""False: never; True: always; an int k: only when there are fewer than k evaluations."""
RATIO = 2.5
"""How many times as long as the step before it a step may be and still build on the history: DPM-Solver++ 2M reads
its prediction half a step ahead of the newest, so that it extrapolates little further than the history reaches back.
Grids uniform in time stay below log 2 / log 1.5 = 1.71 (in log-SNR, at their last step before clean data)."""
NOISY = 32.0
"""sigma / alpha above which predictions hardly change from step to step, so that any history will do."""


def multistep_orders(count: int, order: int, lower_final: LowerFinal = False) -> list[int]:
    """Orders 1, 2, .., `order` while the history fills; with `lower_final` the last ones fall to .., 2, 1."""
    orders = [min(order, index + 1) for index in range(count)]
    if _lowers(lower_final, count):
        orders = [min(own, count - index) for index, own in enumerate(orders)]
    return orders


def singlestep_orders(count: int, order: int, lower_final: LowerFinal = False) -> list[int]:
    """Positions 1, 2, .., `order` in each block of evaluations; a remainder makes a shorter last block.

    With `lower_final` the last block has one evaluation (DPM-Solver-fast, arXiv:2206.00927, app. D.3): the
    two shorter blocks before it make up the count.
    """
    if count < order or not _lowers(lower_final, count):
        return [1 + index % order for index in range(count)]
    full, rest = divmod(count, order)
    blocks = [order] * full + [rest]
    if rest == 0:
        blocks = [order] * (full - 1) + [order - 1, 1]
    return [position for block in blocks for position in range(1, block + 1)]


def fast_blocks(evaluations: int) -> list[int]:
    """The order of each step of DPM-Solver-fast (arXiv:2206.00927, app. D.3): `evaluations` in all.

    Steps of order 3 as far as they go, closed by 2 and 1, by 1, or by 2, so that there are
    `evaluations // 3 + 1` steps.
    """
    if not isinstance(evaluations, int) or evaluations < 1:
        raise ValueError(f"evaluations = {evaluations!r}: give an integer of at least 1")
    full, rest = divmod(evaluations, 3)
    return [*[3] * full, rest] if rest else [*[3] * (full - 1), 2, 1]


def lower_at_long_steps(
    orders: Sequence[int], nodes: Sequence[Node], variable: Variable, longest: Sequence[float] = (math.inf,)
) -> list[int]:
    """Lower orders where a step is too long for what the solver knows: order 1 where it is more than RATIO times as
    long as the one before it, and an order p above 1 only up to a length of `longest[p - 1]`.

    `nodes` are the evaluation nodes and the final one, `len(orders) + 1` in all; steps are measured in the `variable`
    that the solver extrapolates in; the last of `longest` holds for all higher orders. The last step is left as it
    is: how its order is lowered is the caller's choice (`lower_final`), or it ends on clean data, where
    :func:`lower_at_limits` knows what exists.
    """
    steps = _lengths(nodes, variable)
    inner = [_within(order, step, longest) for order, step in zip(orders, steps, strict=True)]
    for index in range(1, len(inner)):
        if steps[index] > RATIO * steps[index - 1] and nodes[index].sbar < NOISY:
            inner[index] = 1
    return [*inner[:-1], *orders[-1:]]


def break_long_blocks(positions: Sequence[int], nodes: Sequence[Node], longest: Sequence[float]) -> list[int]:
    """The same for positions in single-step blocks, in log-SNR: a block begins anew where a stage is too far from the
    one before, and one that is longer than `longest` of its order is taken in steps of order 1."""
    free = lower_at_long_steps(positions, nodes, "lam")
    broken: list[int] = []
    for position, kept in zip(positions, free, strict=True):
        broken.append(min(position, kept, broken[-1] + 1 if broken else 1))
    starts = [index for index, position in enumerate(broken) if position == 1] + [len(broken)]
    for start, end in itertools.pairwise(starts[:-1]):
        if _within(end - start, nodes[end].lam - nodes[start].lam, longest) < end - start:
            broken[start:end] = [1] * (end - start)
    return broken


def _lengths(nodes: Sequence[Node], variable: Variable) -> list[float]:
    places = [node.lam if variable == "lam" else -node.sbar for node in nodes]
    return [abs(target - source) for source, target in itertools.pairwise(places)]


def _within(order: int, step: float, longest: Sequence[float]) -> int:
    """The highest order up to `order` that a step of this length may have."""
    while order > 1 and step > longest[min(order, len(longest)) - 1]:
        order -= 1
    return order


def lower_at_limits(orders: Sequence[int], nodes: Sequence[Node], variable: Variable) -> list[int]:
    """Order 1 wherever a solver that extrapolates in `variable` has no higher one.

    In log-SNR that is a step onto sigma = 0, and where the grid rises from there one whose history would hold it; in
    sigma / alpha a step onto zero SNR. `nodes` are the evaluation nodes and the final one, `len(orders) + 1` in all.
    """
    if variable == "sbar":
        return [order if target.alpha > 0 else 1 for order, target in zip(orders, nodes[1:], strict=True)]
    if nodes[0].sigma == 0:
        orders = [max(min(order, index), 1) for index, order in enumerate(orders)]
    ends = [target.sigma > 0 and target.alpha > 0 for target in nodes[1:]]
    return [order if exists else 1 for order, exists in zip(orders, ends, strict=True)]


def _lowers(lower_final: LowerFinal, count: int) -> bool:
    return lower_final if isinstance(lower_final, bool) else count < lower_final
