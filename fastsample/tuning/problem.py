"""What is tuned: a model as forward calls, its noise schedule, and where its runs begin and end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fastsample.schedules.base import Node, NoiseSchedule
from fastsample.tables.prediction import prediction_weights

Model = Callable[[Tensor, Sequence[float]], Tensor]
"""`model(x, times)`: outputs for samples x [R, P, ..], with all P samples of row r at the model's time `times[r]`."""

CLEANEST = 1e-3
"""Share of the times between the end and the last node, at least: beyond, some schedules know no log-SNR."""


@dataclass(frozen=True)
class Problem:
    """The runs of a model from `first`, where its noise is drawn, to `final`, the end of the pipeline's own runs.

    `whole`: the network takes whole timesteps only, so that it is told the nearest one of a noise level. `named` lays
    a grid out by its name and a number of evaluations, where the pipeline has its own way to (a shift).
    """

    schedule: NoiseSchedule
    prediction_type: str
    first: Node
    final: Node
    whole: bool = False
    named: Callable[[str, int], Sequence[Node]] | None = None

    @property
    def cleanest(self) -> float:
        """The log-SNR that an inner node may have at most: that of a time just before the end."""
        end, begin = self.final.time, self.first.time
        return float(self.schedule.lam(end + CLEANEST * (begin - end)))

    def nodes(self, lams: ArrayLike, told: ArrayLike | None = None) -> tuple[Node, ...]:
        """The grid that begins at `first`, goes on at the log-SNRs `lams`, which must rise, and ends at `final`.

        The network is told the times of these, or of the log-SNRs `told`.
        """
        times = self.schedule.time(lams)
        said = times if told is None else self.schedule.time(told)
        said = np.clip(np.round(said), 0, self.schedule.noise_time) if self.whole else said
        return (self.first, *self.schedule.nodes_at(times, said), self.final)

    def data(self, nodes: Sequence[Node], x: Tensor, output: Tensor) -> Tensor:
        """The data predictions of `output` for samples [R, P, ..], with row r at `nodes[r]`."""
        weights = [prediction_weights(node, self.prediction_type, "data") for node in nodes]
        a, b = torch.tensor(weights, dtype=x.dtype, device=x.device).T.reshape(2, -1, *[1] * (x.ndim - 1))
        predicted: Tensor = a * x + b * output
        return predicted


@dataclass(frozen=True)
class Start:
    """Samples [P, ..] at a problem's first node, and the model's outputs there: the first evaluation of every run."""

    sample: Tensor
    output: Tensor

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.sample)
