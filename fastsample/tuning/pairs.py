"""Pairs of a prompt and a seed: their model, where they start, where they should end, and what that has cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastsample.tuning.linear import Linear
from fastsample.tuning.problem import Model, Problem, Start
from fastsample.tuning.rollout import Rollout, cost, roll_out

OBJECTIVES = ("rms", "huber")
"""What is made small over the pairs: the mean square of their errors, or one that counts far outliers singly."""


class Purse:
    """Guided evaluations that may be made, and those that were: never more.

    `limit` is how many may have been made by the end of the stages under way.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.limit, self.spent = budget, budget, 0

    @property
    def left(self) -> int:
        """How many may still be made before the limit."""
        return min(self.budget, self.limit) - self.spent

    def spend(self, evaluations: int) -> None:
        """Count evaluations about to be made; ValueError where there are not as many left."""
        if evaluations > self.budget - self.spent:
            left = self.budget - self.spent
            raise ValueError(f"budget = {self.budget}: {evaluations} evaluations are needed, {left} are left")
        self.spent += evaluations


@dataclass(frozen=True, eq=False)
class Pairs:
    """P starts of a model, and where their trajectories end once converged, [P, ..]; `spread` is the unit of errors.

    Every roll-out is paid for from `purse`.
    """

    model: Model
    problem: Problem
    start: Start
    reference: Tensor
    spread: float
    purse: Purse

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return self.start.count

    def cost(self, count: int, begins: Sequence[int]) -> int:
        """Evaluations of a roll-out of tables of `count` evaluations; see :func:`roll_out` for `begins`."""
        return self.count * cost(count, begins)

    def roll_out(
        self,
        tables: Sequence[Linear],
        begins: Sequence[int] | None = None,
        leaders: Sequence[int] | None = None,
    ) -> Rollout:
        """What the tables make of the starts; see :func:`fastsample.tuning.rollout.roll_out`."""
        begins = [0] * len(tables) if begins is None else begins
        self.purse.spend(self.cost(tables[0].count, begins))
        return roll_out(self.model, self.problem, tables, self.start, begins, leaders)

    def errors(
        self,
        tables: Sequence[Linear],
        begins: Sequence[int] | None = None,
        leaders: Sequence[int] | None = None,
    ) -> NDArray[np.float64]:
        """RMS distance to the reference by table and pair, [R, P], in units of the spread."""
        return self.distances(self.roll_out(tables, begins, leaders).final)

    def distances(self, final: Tensor) -> NDArray[np.float64]:
        """The same of samples [R, P, ..]; inf where one is not finite."""
        squares = (final - self.reference).square().flatten(2).mean(2).cpu().double()
        return np.asarray((squares.sqrt() / self.spread).nan_to_num(float("inf")).numpy())


def loss(errors: NDArray[np.float64], objective: str) -> NDArray[np.float64]:
    """The objective of errors [.., P], in their unit: root mean square, or by Huber beyond twice the median."""
    if objective == "rms":
        return np.asarray(np.sqrt(np.mean(errors**2, axis=-1)))
    bound = 2 * np.median(errors, axis=-1, keepdims=True)
    return np.asarray(np.sqrt(np.mean(np.where(errors <= bound, errors**2, bound * (2 * errors - bound)), axis=-1)))


def weights(errors: NDArray[np.float64], objective: str) -> NDArray[np.float64]:
    """The factors of the pairs' residuals in a step of least squares that lowers the objective, [P]."""
    if objective == "rms":
        return np.ones_like(errors)
    bound = 2 * np.median(errors)
    return np.asarray(np.sqrt(np.minimum(1.0, bound / np.maximum(errors, 1e-300))))
