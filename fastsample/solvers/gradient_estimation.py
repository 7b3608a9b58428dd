"""Gradient estimation: Euler along a slope of which the error of the last one is taken out (arXiv:2306.04848)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.adams import sigma_row
from fastsample.solvers.registry import solver
from fastsample.tables.row import Row


@solver(
    "gradient-estimation", order=2, space="noise", references=("arXiv:2306.04848",), limits=False, claims=lambda _: 1
)
def gradient_estimation(nodes: Sequence[Node], target: Node, *, order: int = 2, gamma: float = 2.0) -> Row:
    """Euler in sigma / alpha along gamma eps + (1 - gamma) eps_prev; order of convergence 1, one model call a step.

    The first step, and one onto sigma = 0, are Euler's.
    """
    if isinstance(gamma, (bool, str)) or not 1 <= gamma < math.inf:
        raise ValueError(f"gamma = {gamma!r}: give a number of at least 1 (1 is Euler, 2 the paper's)")
    return sigma_row(nodes[-1], target, (1.0,) if order == 1 or target.sigma == 0 else (gamma, 1 - gamma))
