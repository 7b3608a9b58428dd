"""The grid of a run, taken the other way: from clean to noisy, as inversion goes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.schedules.grids import min_time

Rise = Literal["from clean", "from noise"]


def rising_nodes(schedule: NoiseSchedule, nodes: Sequence[Node], rise: Rise) -> tuple[Node, ...]:
    """`nodes`, noisy to clean, turned round.

    "from clean": from sigma = 0 on, and the network is told the time of the point that it goes to, as DDIM inversion
    does: so it is told the times of the run that is inverted. "from noise": from the least noisy time of training on,
    where that is not noisier than the grid's own cleanest point, and told its own times.
    """
    risen = list(nodes[::-1])
    if rise == "from clean":
        return (*[replace(at, time=to.time) for at, to in itertools.pairwise(risen)], risen[-1])
    if risen[0].sigma == 0:
        first = schedule.node(min_time(schedule))
        risen = [first, *[node for node in risen if node.lam < first.lam - 1e-9]]
    return tuple(risen)
