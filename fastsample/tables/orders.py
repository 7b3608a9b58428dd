"""Which order each evaluation's update has: warm-up, lowered final steps, single-step blocks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fastsample.schedules.base import Node

LowerFinal = bool | int
"""False: never; True: always; an int k: only when there are fewer than k evaluations."""
RATIO = 2.0
"""How much longer than the step before it a step may be and still build on the history: DPM-Solver++ 2M reads its
prediction half a step ahead of the newest one, so that up to here it extrapolates no further than the history reaches
back. Grids uniform in time have ratios below log 2 / log 1.5 = 1.71 (their last ones, in log-SNR)."""


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


def lower_at_long_steps(orders: Sequence[int], places: Sequence[float], ratio: float = RATIO) -> list[int]:
    """Order 1 wherever a step is more than `ratio` times as long as the one before it.

    `places` are where the evaluations and the end lie in the variable that the solver extrapolates in, rising:
    `len(orders) + 1` in all. The last step is left as it is: how its order is lowered is the caller's choice
    (`lower_final`), or it ends on clean data, where :func:`lower_at_limits` knows what exists.
    """
    steps = [target - source for source, target in itertools.pairwise(places)]
    inner = [
        1 if index and step > ratio * steps[index - 1] else order
        for index, (order, step) in enumerate(zip(orders, steps, strict=True))
    ]
    return [*inner[:-1], *orders[-1:]]


def break_at_long_steps(positions: Sequence[int], places: Sequence[float], ratio: float = RATIO) -> list[int]:
    """Positions in single-step blocks, a block beginning anew wherever :func:`lower_at_long_steps` lowers an order."""
    lowered = lower_at_long_steps(positions, places, ratio)
    broken: list[int] = []
    for position, free in zip(positions, lowered, strict=True):
        broken.append(min(position, free, broken[-1] + 1 if broken else 1))
    return broken


def lower_at_limits(orders: Sequence[int], nodes: Sequence[Node]) -> list[int]:
    """Order 1 wherever an exponential integrator has no higher one: onto sigma = 0.

    `nodes` are the evaluation nodes and the final one, `len(orders) + 1` in all.
    """
    return [1 if nodes[index + 1].sigma == 0 else order for index, order in enumerate(orders)]


def _lowers(lower_final: LowerFinal, count: int) -> bool:
    return lower_final if isinstance(lower_final, bool) else count < lower_final
