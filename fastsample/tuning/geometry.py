"""Grids read off a teacher's trajectories, without an evaluation: candidates of the screen.

Each gives the inner log-SNRs of `count` evaluations, the first of which is at the problem's first node.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsample.tuning.teacher import Teacher

Array = NDArray[np.float64]


def equal_rotation(teacher: Teacher, count: int) -> Array:
    """Nodes between which trajectories turn by the same angle (as TORS, arXiv:2603.00763, in all dimensions)."""
    slopes = _slopes(teacher)
    turns = [_angle(before, after) for before, after in itertools.pairwise(slopes)]
    return _quantiles(teacher, np.array(turns), count)


def equal_change(teacher: Teacher, count: int) -> Array:
    """Nodes between which the velocity changes by the same amount (as SharpEuler, arXiv:2605.11547)."""
    slopes = _slopes(teacher)
    changes = [float((after - before).norm()) for before, after in itertools.pairwise(slopes)]
    return _quantiles(teacher, np.array(changes), count)


def shortest_jumps(teacher: Teacher, count: int) -> Array:
    """The nodes whose Euler jumps along the trajectory miss least, by dynamic programming (GITS, 2405.11326)."""
    levels = [node.sigma / (node.alpha + node.sigma) for node in teacher.nodes]
    scaled = [x / (node.alpha + node.sigma) for x, node in zip(teacher.samples, teacher.nodes, strict=True)]
    slopes, points = _slopes(teacher), len(teacher.nodes)
    misses = np.full((points, points), np.inf)
    for source in range(points - 1):
        for target in range(source + 1, points):
            jump = scaled[source] + (levels[target] - levels[source]) * slopes[source]
            misses[source, target] = float((jump - scaled[target]).norm())
    best = np.full((count + 1, points), np.inf)
    came = np.zeros((count + 1, points), dtype=int)
    best[0, 0] = 0.0
    for step in range(1, count + 1):
        through = best[step - 1][:, None] + misses
        came[step], best[step] = through.argmin(0), through.min(0)
    path = [points - 1]
    for step in range(count, 0, -1):
        path.append(int(came[step, path[-1]]))
    return np.array([teacher.nodes[index].lam for index in path[::-1][1:-1]])


GEOMETRIC: dict[str, Callable[[Teacher, int], Array]] = {
    "equal-rotation": equal_rotation,
    "equal-change": equal_change,
    "shortest-jumps": shortest_jumps,
}


def _slopes(teacher: Teacher) -> list[Tensor]:
    """The velocity of x / (alpha + sigma) in sigma / (alpha + sigma) at each evaluation: noise - data."""
    found = []
    for node, x, data in zip(teacher.nodes, teacher.samples, teacher.data, strict=False):
        found.append((x - node.alpha * data) / node.sigma - data)
    return found


def _angle(one: Tensor, other: Tensor) -> float:
    """The mean angle between the rows of two batches."""
    a, b = one.flatten(1).double(), other.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-300)
    return float(cosine.clamp(-1, 1).arccos().mean())


def _quantiles(teacher: Teacher, amounts: Array, count: int) -> Array:
    """The log-SNRs of evaluations between which equal parts of the sum of `amounts` lie, the last at its end."""
    passed = np.append(0.0, np.cumsum(amounts))
    lams = np.array([node.lam for node in teacher.nodes[:-1]])
    lams[0] = max(lams[0], lams[1] - 4.0)  # pure noise has none
    return np.asarray(np.interp(passed[-1] * np.arange(1, count) / count, passed, lams))
