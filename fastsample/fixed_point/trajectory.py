"""A sampler's trajectory as a triangular system: the samples that one step after the other makes of outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.schedules.base import Node


class Trajectory(ABC):
    """Samples [B, ..] from `x` along `nodes`, where row i is the model evaluation at state i.

    A change is the RMS over a sample's elements relative to the noise that a DDPM step would add there
    (:func:`noise_scales`). Subclasses say what the steps make of outputs.
    """

    def __init__(self, x: Tensor, nodes: Sequence[Node]) -> None:
        self._x = x
        self._scales = noise_scales(nodes)
        self._spreads = np.array([math.hypot(node.alpha, node.sigma) for node in nodes])
        self._gains: dict[int, tuple[float, float]] = {}

    @abstractmethod
    def gain(self, index: int) -> tuple[float, float]:
        """The factors of the sample and of the output in step `index`, which is as good as linear in both."""

    @property
    def length(self) -> int:
        """The evaluations."""
        return len(self._scales) - 1

    def initial(self) -> Tensor:
        """The sample at the first node, [1, B, ..]."""
        return self._x[None]

    def gains(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of the sample and of the output in each step, float64."""
        index = rows.numpy()
        for step in sorted(set(index.flat) - self._gains.keys()):
            self._gains[step] = self.gain(step)
        both = np.array([self._gains[step] for step in index.flat]).reshape(*index.shape, 2)
        return torch.from_numpy(both[..., 0]), torch.from_numpy(both[..., 1])

    def change(self, rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """RMS of the difference over the step's noise scale, [R, B]."""
        dims, dtype = tuple(range(2, new.ndim)), accumulation_dtype(new.dtype)
        moved = torch.linalg.vector_norm(new - old, dim=dims, dtype=dtype).cpu().numpy()
        return torch.from_numpy(moved / (self._scales[rows.numpy()] * math.sqrt(math.prod(new.shape[2:]))))

    def spread_guess(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """`states` at the noise levels of `rows`, by `sqrt(alpha^2 + sigma^2)`: on VP models a copy."""
        guess = states.expand(len(rows), *states.shape)
        return guess * like(torch.from_numpy(self._spreads[rows.numpy()] / self._spreads[reached.numpy()]), guess)


class SteppedTrajectory(Trajectory):
    """Samples by steps that are made one after the other; `output` is the model's before `x`, where there is one."""

    def __init__(self, x: Tensor, nodes: Sequence[Node], output: Tensor | None = None) -> None:
        super().__init__(x, nodes)
        self._before = output
        self._samples: dict[int, Tensor] = {}  # what each step was given last, [B, ..]
        self._outputs: dict[int, Tensor] = {}
        self._items = torch.arange(len(x), device=x.device)

    @abstractmethod
    def step(self, index: int, sample: Tensor, output: Tensor) -> Tensor:
        """State `index + 1`; what later steps read of this one is kept, and made anew when it is made again."""

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """The coming steps with the last output; before there is one, `states` at the noise levels' spread."""
        last = self._before
        if self._outputs:
            steps = (reached - 1).clamp(min=0)
            last = torch.stack([self._outputs[step][item] for item, step in enumerate(steps.tolist())])
        if last is None:
            return self.spread_guess(reached, rows, states)
        steps = (rows - 1).clamp(max=self.length - 1)
        guess = states.expand(len(rows), *states.shape)
        return self._steps(steps, guess, last.expand(len(rows), *last.shape), None, replayed=True)

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        """The next samples, each of its own sample and output; what earlier steps left is of theirs."""
        return self._steps(rows, states, outputs, None, replayed=False)

    def replay(self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None = None) -> Tensor:
        """The next samples by running the steps from the first sample, with outputs that follow their samples."""
        return self._steps(rows, states, outputs, slopes, replayed=True)

    def commit(self, begin: Tensor) -> None:
        """Drops what only steps before `begin` were given; the last output before it starts the next guess."""
        for kept in (self._samples, self._outputs):
            for index in [index for index in kept if index < int(begin.min()) - 1]:
                del kept[index]

    def _steps(
        self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None, *, replayed: bool
    ) -> Tensor:
        """Runs steps from the first row of any item to the last; items that are past a step run it as they did."""
        index = rows.to(outputs.device)
        first, last = int(rows.min()), int(rows.max())
        self._take(index, first, last, states, outputs)
        factors = states.new_zeros((last + 1 - first, len(self._items)))
        if slopes is not None:
            factors[index - first, self._items] = slopes.to(states.dtype).to(states.device)  # some have no float64
        made: list[Tensor] = []
        for step in range(first, last + 1):
            if replayed and made:
                guess = self._samples[step]
                inside = (step > index[0]).reshape(-1, *[1] * (guess.ndim - 1))
                self._samples[step] = torch.where(inside, made[-1], guess)
                if slopes is not None:  # kept, so that a step made again is the same
                    moved = like(factors[step - first][None], guess[None])[0] * (self._samples[step] - guess)
                    self._outputs[step][:, : guess.shape[1]] += moved  # without a learned variance
            made.append(self.step(step, self._samples[step], self._outputs[step]))
        return torch.stack(made)[index - first, self._items]

    def _take(self, index: Tensor, first: int, last: int, states: Tensor, outputs: Tensor) -> None:
        """Each item's samples and outputs in place of those that its steps were given before."""
        for kept, values in ((self._samples, states), (self._outputs, outputs)):
            for step in range(first, last + 1):
                own = (index == step).long()
                row = own.argmax(0)  # an item's row of this step, where it has one
                given = values[row, self._items]
                has = own.any(0).reshape(-1, *[1] * (given.ndim - 1))
                kept[step] = torch.where(has, given, kept[step]) if step in kept else given.clone()


def noise_scales(nodes: Sequence[Node]) -> NDArray[np.float64]:
    """The noise std of a DDPM step to each node, `sigma_t sqrt(1 - exp(-2 (lam_t - lam_s)))`, float64 [len(nodes)].

    The step to clean data and stages at one time, where it is zero, take the scale before them, or after where
    there is none.
    """
    stds = [
        target.sigma * np.sqrt(-np.expm1(-2 * abs(target.lam - node.lam))) if target.lam != node.lam else 0.0
        for node, target in pairwise(nodes)
    ]
    stds = [std if np.isfinite(std) and std > 1e-12 else 0.0 for std in [0.0, *stds]]
    carried = list(accumulate(stds, _last_positive))
    first = next((std for std in carried if std), 1.0)
    return np.array([std or first for std in carried], dtype=np.float64)


def like(factors: Tensor, states: Tensor) -> Tensor:
    """`factors` [R, B] as multipliers of `states` [R, B, ..]."""
    return factors.to(states.dtype).to(states.device).reshape(*factors.shape, *[1] * (states.ndim - factors.ndim))


def _last_positive(before: Any, std: Any) -> Any:
    return std or before
