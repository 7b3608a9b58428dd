"""Grid and weights of a table, and what times the network is told, tuned together by damped least squares.

A sample of few steps is not what the network was trained on at its noise level: told another time, it is nearer to
where the trajectory should go (as in LD3, arXiv:2405.15506). The marginals do not depend on what it is told.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastsample.tuning.grid import Base, ordered
from fastsample.tuning.linear import Linear, with_sums
from fastsample.tuning.newton import Family
from fastsample.tuning.problem import Problem
from fastsample.tuning.rows import free_weights

Array = NDArray[np.float64]
MOVED = 0.03
"""By how much a weight is moved to see its effect; the samples are linear in those of the last row."""
TOLD = 0.05
"""By how much the log-SNR is moved whose time the network is told."""
RIDGES = (1e-2, 1e-3, 1e-4)
"""How strongly weights are held to the solver's own, relative to the mean curvature. Each goes on from the best
of the one before."""


def joint_family(base: Base, count: int, difference: float) -> Family:
    """Tables of `count` evaluations by their inner log-SNRs, then by what differs from `base`'s.

    That are the log-SNRs whose times the network is told, where it takes any time, and the weights.
    """
    problem, grid, free = base.problem, count - 1, free_weights(count)
    told = told_times(problem, count)

    def build(values: Array) -> Linear:
        lams, further, change = np.split(values, [grid, grid + told])
        weights = base.at(lams).weights.copy()
        for place, own in zip(free, change, strict=True):
            weights[place] += own
        return with_sums(Linear(problem.nodes(lams, lams + further if told else None), weights))

    keep = ordered(problem, grid)

    def limit(values: Array, moved: Array) -> Array:
        moved = np.array(keep(values, moved))
        if told:  # what the network is told stays in order too
            before, after = (each[:grid] + each[grid : grid + told] for each in (values, moved))
            moved[grid : grid + told] = keep(before, after) - moved[:grid]
        return moved

    return Family(
        build,
        (*range(1, count), *range(1, 1 + told), *(row + 1 for row, _ in free)),
        np.array([difference] * grid + [max(TOLD, difference)] * told + [max(MOVED, difference)] * len(free)),
        np.array([0.0] * grid + [1.0] * (told + len(free))),
        limit,
    )


def told_times(problem: Problem, count: int) -> int:
    """How many times of a table are tuned that the network is told."""
    return 0 if problem.whole else count - 1


def changes(linear: Linear, base: Base) -> Array:
    """What `linear`, on a grid of `base`, differs by from it: the values of :func:`joint_family` after the grid.

    It tells the network the times of its own grid, as all stages before do.
    """
    lams = [node.lam for node in linear.nodes[1:-1]]
    own = base.at(np.array(lams)).weights
    weights = [linear.weights[place] - own[place] for place in free_weights(linear.count)]
    return np.concatenate([np.zeros(told_times(base.problem, linear.count)), weights])
