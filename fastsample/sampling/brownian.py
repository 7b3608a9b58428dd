"""Noise that is the increments of one Brownian path: any number of steps from a seed follow the same path.

The path W runs in u = alpha^2 / sigma^2, the signal-to-noise ratio. There the noise that a step of the reverse SDE
adds is an increment: x alpha / sigma^2 gains W(u_t) - W(u_s), exactly, whatever the step. So a long step draws the
sum of what the short ones within it draw.

It is a virtual Brownian tree (Li et al., arXiv:2001.01328, sec. 4): nothing of it is kept. W at a point is a sum of
normal numbers, one for each bridge that halves the range on the way down to that point, and each of these is a
function of the seed and of its place in the tree alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastsample.sampling.noise import Generators, check_one_each
from fastsample.schedules.base import Node

LOW, HIGH = -12.0, 20.0
"""log(alpha / sigma) at the ends of the tree; noisier points are pure noise, where W = 0."""
DEPTH = 14
"""Halvings of that range: points are rounded to 2e-3 in log(alpha / sigma), a seventh of a step of a thousand."""
NEGLIGIBLE = 2.0**-30
"""A part of a unit of noise that no float32 shows."""


class BrownianPath:
    """One path an image, each from a seed: the same on every device, at every dtype and in every batch."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(seeds)

    @classmethod
    def drawn(cls, rows: int, generator: Generators = None) -> BrownianPath:
        """With `rows` seeds, drawn from `generator`: a list gives one each. Waits for a generator on a device.

        Raises ValueError when a list's length is not `rows`.
        """
        if isinstance(generator, list):
            check_one_each(generator, rows)
            return cls([seed for own in generator for seed in cls.drawn(1, own).seeds])
        device = "cpu" if generator is None else generator.device
        return cls(torch.randint(2**63 - 1, (rows,), generator=generator, device=device).tolist())

    @classmethod
    def of_seed(cls, seed: int, rows: int) -> BrownianPath:
        """With one seed for a batch; its first images are those of a smaller one."""
        return cls(np.random.SeedSequence(seed % 2**64).generate_state(rows, np.uint64).tolist())

    def noise(self, like: Tensor, source: Node, target: Node) -> Tensor:
        """The path's increment from `source` to `target` at unit variance: shaped as `like`, float32 or wider, there.

        Normal numbers are of float32 precision. Raises ValueError for another number of images than there are paths.
        """
        if len(like) != len(self.seeds):
            raise ValueError(
                f"sample has {len(like)} rows, but its noise {len(self.seeds)} paths: call set_timesteps before a "
                "batch of another size"
            )
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        made = torch.zeros(like.shape, dtype=dtype, device="cpu")
        for place, weight in increment_weights(source, target).items():
            for row, seed in zip(made, self.seeds, strict=True):
                row.add_(_normal(seed, place, row.shape), alpha=weight)
        return made.to(like.device)


def increment_weights(source: Node, target: Node) -> dict[int, float]:
    """By place in the tree the weights of the normal numbers in `(W(u_t) - W(u_s)) / sqrt(|u_t - u_s|)`.

    Two points that are one in the tree take the one beside it.
    """
    start, end = _leaf(source), _leaf(target)
    if start == end:
        start, end = (start, end + 1) if end < 2**DEPTH else (start - 1, end)
    weights = _value(end)
    for place, weight in _value(start).items():
        weights[place] = weights.get(place, 0.0) - weight
    unit = math.sqrt(abs(_clock(end) - _clock(start)))
    return {place: weight / unit for place, weight in weights.items() if abs(weight) > NEGLIGIBLE * unit}


def _leaf(node: Node) -> int:
    """The point of the tree, 0 to 2^DEPTH, nearest to `node` in log-SNR."""
    lam = min(max(node.lam, LOW), HIGH)
    place: int = round((lam - LOW) / (HIGH - LOW) * 2**DEPTH)
    return place


def _clock(leaf: int) -> float:
    """u at a point of the tree."""
    return math.exp(2 * (LOW + (HIGH - LOW) * leaf / 2**DEPTH)) if leaf else 0.0


def _value(leaf: int) -> dict[int, float]:
    """W at a point as weights of normal numbers: place 0 is the end of the range, then the tree as a heap from 1."""
    left, right, place = 0, 2**DEPTH, 1
    at_left: dict[int, float] = {}
    at_right = {0: math.sqrt(_clock(right))}
    if leaf == right:
        return at_right
    while leaf != left:
        middle = (left + right) // 2
        before, after = _clock(middle) - _clock(left), _clock(right) - _clock(middle)
        whole = before + after
        bridged = {key: weight * after / whole for key, weight in at_left.items()}
        for key, weight in at_right.items():
            bridged[key] = bridged.get(key, 0.0) + weight * before / whole
        bridged[place] = math.sqrt(before) * math.sqrt(after / whole)
        if leaf < middle:
            right, at_right, place = middle, bridged, 2 * place
        else:
            left, at_left, place = middle, bridged, 2 * place + 1
    return at_left


def _normal(seed: int, place: int, shape: torch.Size) -> Tensor:
    """Standard normal numbers that depend on the seed and the place alone."""
    mixed = np.random.SeedSequence(seed, spawn_key=(place,)).generate_state(1)[0]
    return torch.randn(shape, generator=torch.Generator().manual_seed(int(mixed)), device="cpu")
