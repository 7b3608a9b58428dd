"""The converged trajectories that tables are tuned on, and what lies between their points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fastsample.schedules.base import Node
from fastsample.tuning.grid import Base
from fastsample.tuning.linear import linear_of
from fastsample.tuning.problem import Model, Problem, Start
from fastsample.tuning.rollout import roll_out

SOLVER: tuple[str, dict[str, Any]] = ("unipc", {"order": 2})
"""What the teacher is made with: near its limit with the fewest steps of ours on the bundled models."""
GUIDED: tuple[str, dict[str, Any]] = ("dpmpp-2m", {})
STRONG = 4.0
"""Beyond this guidance scale the teacher is made with GUIDED, as a corrector then goes astray."""
NOISY = -4.5
"""The log-SNR from which its steps are even where it starts at less; nothing is seen in so much noise."""
BENT = 1.5
"""The power of a line that its times follow beyond STRONG, where most happens early on."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """Samples [S + 1][P, ..] at `nodes`, and data predictions [S][P, ..] at all but the last of them."""

    nodes: tuple[Node, ...]
    samples: tuple[Tensor, ...]
    data: tuple[Tensor, ...]

    @property
    def final(self) -> Tensor:
        """Where the trajectories end."""
        return self.samples[-1]

    def first(self, count: int) -> Teacher:
        """The first `count` trajectories."""
        return Teacher(self.nodes, tuple(x[:count] for x in self.samples), tuple(x[:count] for x in self.data))

    def at(self, node: Node) -> Tensor:
        """The samples at any node: a cubic in the noise level between two points, by their slopes (Hermite).

        In z = x / (alpha + sigma) over u = sigma / (alpha + sigma) the slope is noise - data, at every noise level.
        """
        levels = [_level(point) for point in self.nodes]
        own = _level(node)
        index = next((i for i in range(len(levels) - 2) if levels[i + 1] <= own), len(levels) - 2)
        start, end = levels[index], levels[index + 1]
        width, part = end - start, (own - start) / (end - start)
        z0, z1 = (self.samples[i] / _scale(self.nodes[i]) for i in (index, index + 1))
        if index == len(levels) - 2:  # the end has no slope of its own
            mixed = z0 + part * width * self._slope(index) * (1 - part) + part**2 * (z1 - z0)
        else:
            s0, s1 = width * self._slope(index), width * self._slope(index + 1)
            mixed = (
                (1 + 2 * part) * (1 - part) ** 2 * z0
                + part * (1 - part) ** 2 * s0
                + part**2 * (3 - 2 * part) * z1
                + part**2 * (part - 1) * s1
            )
        return mixed * _scale(node)

    def _slope(self, index: int) -> Tensor:
        node = self.nodes[index]
        noise = (self.samples[index] - node.alpha * self.data[index]) / node.sigma
        return noise - self.data[index]


def teacher_nodes(problem: Problem, last: Node, steps: int, guidance: float) -> tuple[Node, ...]:
    """`steps` evaluations from the problem's first node to `last`, and the end: even in log-SNR, or bent in time."""
    if guidance <= STRONG:
        return problem.nodes(np.linspace(max(problem.first.lam, NOISY), last.lam, steps)[1:])
    first, end = problem.schedule.time([problem.first.lam, last.lam])
    return problem.nodes(problem.schedule.lam(end + (first - end) * np.linspace(1, 0, steps)[1:] ** BENT))


def teach(model: Model, problem: Problem, start: Start, last: Node, steps: int, guidance: float = 1.0) -> Teacher:
    """The trajectories from `start`, of `steps` evaluations, of which the last is at `last`, under the `guidance`."""
    solver = GUIDED if guidance > STRONG else SOLVER
    linear = linear_of(Base(problem, *solver).on(teacher_nodes(problem, last, steps, guidance)))
    made = roll_out(model, problem, [linear], start)
    return Teacher(linear.nodes, tuple(x[0] for x in made.samples), tuple(d[0] for d in made.data))


def spread(final: Tensor) -> float:
    """The standard deviation of the ends, the unit of errors."""
    return float(final.cpu().double().std())


def _level(node: Node) -> float:
    return node.sigma / (node.alpha + node.sigma)


def _scale(node: Node) -> float:
    return node.alpha + node.sigma
