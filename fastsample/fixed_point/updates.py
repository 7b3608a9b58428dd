"""How a sweep moves its states: the rules of Picard, replay, secant and triangular Anderson iteration.

Write the system's step as `x_{i+1} = F_i(x_i)`. From guesses y and their `F_i(y_i)`, a rule sets
`z_{i+1} = F_i(y_i) + J_i (z_i - y_i)` along the window: exact where the inputs were (`z_i = y_i`), for any J.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fastsample.fixed_point.triangular import TriangularSystem
from fastsample.sampling.backend import accumulation_dtype


class Update(Protocol):
    """Moves the states of a window; may remember earlier sweeps of one system.

    `copies`: the states that a window comes to start as copies of the last one, not as the system guesses them.
    """

    copies: ClassVar[bool] = False

    def __call__(
        self, system: TriangularSystem, rows: Tensor, states: Tensor, outputs: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The states `rows + 1` as the next sweep's guess, and as they are where their inputs have settled.

        `old` are their values before the sweep. The second result judges convergence and is what is committed; it is
        the same tensor where there is no difference.
        """


class Jacobi(Update):
    """`J = 0`: every state from its own input (Song et al. 2021)."""

    def __call__(
        self, system: TriangularSystem, rows: Tensor, states: Tensor, outputs: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        new = system.advance(rows, states, outputs)
        return new, new


class Increment(Update):
    """`J = 1`: the sum of the steps' increments; Picard as published (ParaDiGMS, arXiv:2305.16317, eq. 6)."""

    copies = True

    def __call__(
        self, system: TriangularSystem, rows: Tensor, states: Tensor, outputs: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        new = _corrected(system.advance(rows, states, outputs), states, torch.ones(rows.shape))
        return new, new


class Replay(Update):
    """The cheap map run again with this sweep's outputs: exact for what is linear in the states."""

    def __call__(
        self, system: TriangularSystem, rows: Tensor, states: Tensor, outputs: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        new = system.replay(rows, states, outputs)
        return new, new


class Secant(Update):
    """Replay with outputs that follow their states, by the slope of the last two sweeps, free of evaluations.

    For each state and batch item `K = <dy, du> / <dy, dy>` between two sweeps' states y and outputs u. A step's
    `J = A + B K` (A, B: the gains of state and output) is kept within 0 and `largest`, and is 1, as Picard's, where
    there is one sweep only. Unlike a J on the step alone, it also moves what later steps read of the outputs.
    """

    def __init__(self, largest: float = 1.5) -> None:
        self.largest = largest
        self._states: Tensor | None = None
        self._outputs: Tensor | None = None

    def __call__(
        self, system: TriangularSystem, rows: Tensor, states: Tensor, outputs: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        index, items = rows.to(states.device), torch.arange(rows.shape[1], device=states.device)
        visible = outputs[:, :, : states.shape[2]] if outputs.shape != states.shape else outputs
        if self._states is None or self._outputs is None:
            self._states = states.new_full((system.length, *states.shape[1:]), float("nan"))
            self._outputs = visible.new_full((system.length, *visible.shape[1:]), float("nan"))
        step, turn = states - self._states[index, items], visible - self._outputs[index, items]
        self._states[index, items], self._outputs[index, items] = states, visible
        slope = (_dots(step, turn) / _dots(step, step)).cpu().double()  # some devices have no float64
        of_state, of_output = system.gains(rows)
        factor = (of_state + of_output * slope).nan_to_num(1.0, 1.0, 1.0).clamp(0, self.largest)
        slopes = torch.where(of_output.abs() > 1e-6, (factor - of_state) / of_output, 0.0)
        new = system.replay(rows, states, outputs, slopes)
        return new, new


class Anderson(Update):
    """Triangular Anderson acceleration (ParaTAA, Tang et al. 2024, arXiv:2402.09970, section 3) of :class:`Replay`.

    Each state is corrected by the last `memory` sweeps' differences, with weights that make the residuals of the
    earlier states and its own smallest; regularised by `damping` relative to the differences. The leading state,
    which is exact, is left alone.
    """

    def __init__(self, memory: int = 2, damping: float = 1e-3) -> None:
        if memory < 1:
            raise ValueError(f"memory = {memory}: give the sweeps that are remembered, 1 or more")
        self.damping = damping
        self._past: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory)  # values and residuals of every state

    def __call__(
        self, system: TriangularSystem, rows: Tensor, states: Tensor, outputs: Tensor, old: Tensor
    ) -> tuple[Tensor, Tensor]:
        plain = system.replay(rows, states, outputs)
        residual = plain - old
        index, items = rows.to(states.device), torch.arange(rows.shape[1], device=states.device)
        values = [(old, residual), *((x[index, items], r[index, items]) for x, r in self._past)]
        self._remember(system.length, index, items, old, residual)
        if len(values) == 1:
            return plain, plain
        pairs = list(pairwise(values))  # a state without a past has differences of zero, and is left alone
        moved = torch.stack([(x - past_x).nan_to_num(0.0) for (x, _), (past_x, _) in pairs])
        turned = torch.stack([(r - past_r).nan_to_num(0.0) for (_, r), (_, past_r) in pairs])
        flat = turned.flatten(3).to(accumulation_dtype(turned.dtype))
        gram = torch.einsum("krbd,lrbd->rbkl", flat, flat).cumsum(0)
        right = torch.einsum("krbd,rbd->rbk", flat, residual.flatten(2).to(flat)).cumsum(0)
        ridge = self.damping * gram.diagonal(dim1=-2, dim2=-1).mean(-1) + torch.finfo(gram.dtype).tiny
        weights = torch.linalg.solve(gram + torch.diag_embed(ridge[..., None].expand_as(right)), right)
        weights[0] = 0.0
        weights = weights.movedim(-1, 0).to(states).reshape(*moved.shape[:3], *[1] * (moved.ndim - 3))
        return plain - (weights * (moved + turned)).sum(0), plain

    def _remember(self, length: int, index: Tensor, items: Tensor, old: Tensor, residual: Tensor) -> None:
        buffers = [old.new_full((length, *old.shape[1:]), float("nan")) for _ in range(2)]
        for buffer, value in zip(buffers, (old, residual), strict=True):
            buffer[index, items] = value
        self._past.appendleft((buffers[0], buffers[1]))


UPDATES: dict[str, Callable[[], Update]] = {
    "picard": Increment,
    "replay": Replay,
    "secant": Secant,
    "anderson": Anderson,
}
"""The iterations of diffusion trajectories by name."""


def make_update(iteration: str) -> Update:
    """A fresh update rule; ValueError when there is none of that name."""
    if iteration not in UPDATES:
        raise ValueError(f"iteration = {iteration!r}: choose one of {', '.join(UPDATES)}")
    return UPDATES[iteration]()


def _corrected(moved: Tensor, states: Tensor, slope: Tensor) -> Tensor:
    """`z_{i+1} = F_i(y_i) + J_i (z_i - y_i)` from `z = y` in the first row, for J [R, B]."""
    slope = slope.to(moved).reshape(*slope.shape, *[1] * (moved.ndim - slope.ndim))
    new = [moved[0]]
    for row in range(1, len(moved)):
        new.append(torch.addcmul(moved[row], slope[row], new[-1] - states[row]))
    return torch.stack(new)


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Inner products [R, B] of [R, B, ..]."""
    dtype = accumulation_dtype(one.dtype)
    return (one.flatten(2).to(dtype) * other.flatten(2).to(dtype)).sum(-1)
