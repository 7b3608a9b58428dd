"""Samplers of consistency models, whose output jumps to the data: each step goes there and adds noise again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.solvers.registry import check_eta, solver
from fastsample.tables.row import Row, Weights, ddim_weights


@solver("lcm", order=1, space="data", references=("arXiv:2303.01469", "arXiv:2310.04378"), distilled=True)
def lcm(nodes: Sequence[Node], target: Node, *, order: int = 1) -> Row:
    """Multistep consistency sampling (LCM): the data prediction with fresh noise; for consistency models alone."""
    return Row(nodes[-1], target, Weights(data=target.alpha, noise=target.sigma))


@solver("tcd", order=1, space="data", references=("arXiv:2402.19159",), distilled=True)
def tcd(nodes: Sequence[Node], target: Node, *, order: int = 1, schedule: NoiseSchedule, eta: float = 0.3) -> Row:
    """Strategic stochastic sampling (TCD, alg. 4): DDIM to (1 - eta) of the next time, and noise back to it."""
    check_eta(eta)
    source, first = nodes[-1], schedule.first_time
    if target.time <= first or eta == 0:
        return Row(source, target, ddim_weights(source, target))
    beyond = first + (1 - eta) * (target.time - first)
    cleaner = schedule.node(math.floor(beyond) if schedule.kind == "vp" and schedule.train_steps else beyond)
    down = Node(target.time, target.alpha, min(target.alpha * cleaner.sbar, target.sigma))
    noise = math.sqrt(target.sigma**2 - down.sigma**2)
    return Row(source, target, ddim_weights(source, down, noise))
