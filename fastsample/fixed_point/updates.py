"""How a sweep moves its states: the rules of Picard, replay, secant and triangular Anderson iteration.

Write the system's step as `x_{i+1} = F_i(x_i)`. From guesses y and their `F_i(y_i)`, a rule sets
`z_{i+1} = F_i(y_i) + J_i (z_i - y_i)` along the window: exact where the inputs were (`z_i = y_i`), for any J.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.fixed_point.rows import taken
from fastsample.fixed_point.triangular import TriangularSystem
from fastsample.sampling.backend import accumulation_dtype


class Sweep(NamedTuple):
    """What a sweep has found: `outputs` [R, B, ..] of the `rows` [R, B] at `states` [R, B, ..].

    `old` are the values of the states `rows + 1` before it. `evaluated` [R, B] are the rows whose outputs are the
    model's, where the others' are interpolated; None: all.
    """

    rows: Tensor
    states: Tensor
    outputs: Tensor
    old: Tensor
    evaluated: NDArray[np.bool_] | None = None


class Update(Protocol):
    """Moves the states of a window; may remember earlier sweeps of one system.

    `copies`: the states that a window comes to start as copies of the last one, not as the system guesses them.
    """

    copies: ClassVar[bool] = False

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        """The states `rows + 1` as the next sweep's guess, and as they are where their inputs have settled.

        The second result judges convergence and is what is committed; it is the same tensor where there is no
        difference.
        """


class Jacobi(Update):
    """`J = 0`: every state from its own input (Song et al. 2021)."""

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        new = system.advance(sweep.rows, sweep.states, sweep.outputs)
        return new, new


class Increment(Update):
    """`J = 1`: the sum of the steps' increments; Picard as published (ParaDiGMS, arXiv:2305.16317, eq. 6)."""

    copies = True

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        moved = system.advance(sweep.rows, sweep.states, sweep.outputs) - sweep.states
        new = sweep.states[:1] + moved.cumsum(0)
        return new, new


class Replay(Update):
    """The cheap map run again with this sweep's outputs: exact for what is linear in the states."""

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        new = system.replay(sweep.rows, sweep.states, sweep.outputs)
        return new, new


class Secant(Update):
    """Replay with outputs that follow their states, by the slope of the last two sweeps, free of evaluations.

    For each state and batch item `K = <dy, du> / <dy, dy>` between two sweeps' states y and outputs u. A step's
    `J = A + B K` (A, B: the gains of state and output) is kept within 0 and `largest`, and is 1, as Picard's, where
    there is one sweep only. Unlike a J on the step alone, it also moves what later steps read of the outputs.
    """

    def __init__(self, largest: float = 1.5) -> None:
        self.largest = largest
        # the last sweep's first rows, states, outputs, and which rows were evaluated
        self._last: tuple[NDArray[np.int64], Tensor, Tensor, NDArray[np.bool_] | None] | None = None
        self._slopes = np.zeros((0, 0))

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        rows, states, outputs, _, evaluated = sweep
        visible = outputs[:, :, : states.shape[2]] if outputs.shape != states.shape else outputs
        first = rows.numpy()[0]
        of_state, of_output = (part.numpy() for part in system.gains(rows))
        self._slopes = self._measured(first, states, visible, evaluated)
        factor = of_state + of_output * self._slopes
        factor = np.nan_to_num(factor, nan=1.0, posinf=1.0, neginf=1.0).clip(0, self.largest)
        self._last = first, states, visible, evaluated
        slopes = np.divide(factor - of_state, of_output, out=np.zeros_like(factor), where=np.abs(of_output) > 1e-6)
        new = system.replay(rows, states, outputs, torch.from_numpy(slopes))
        return new, new

    def _measured(
        self, first: NDArray[np.int64], states: Tensor, outputs: Tensor, evaluated: NDArray[np.bool_] | None
    ) -> NDArray[np.float64]:
        """K of each row [R, B], from those of the sweep before that began at other rows; NaN where there is none.

        Where a sweep evaluated some rows only, K is linear between those that both did, else that of the last sweep.
        """
        slopes = np.full(states.shape[:2], np.nan)
        if self._last is None:
            return slopes
        began, old_states, old_outputs, then = self._last
        place = np.arange(len(states))[:, None] + (first - began)
        count = int((place < len(old_states)).any(1).sum())  # of the rows that some item has met
        known = place[:count] < len(old_states)
        place = np.minimum(place[:count], len(old_states) - 1)
        step, turn = states[:count] - taken(old_states, place), outputs[:count] - taken(old_outputs, place)
        dots = torch.stack([_dots(step, turn), _dots(step, step)]).cpu().numpy().astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes[:count] = np.where(known, dots[0] / dots[1], np.nan)
        if evaluated is not None or then is not None:
            both = np.zeros(slopes.shape, dtype=bool)
            both[:count] = known if then is None else known & np.take_along_axis(then, place, 0)
            both &= np.isfinite(slopes) if evaluated is None else evaluated & np.isfinite(slopes)
            last = np.full_like(slopes, np.nan)
            last[:count] = np.where(known, np.take_along_axis(self._slopes, place, 0), np.nan)
            for item, rows in enumerate(both.T):
                found = np.flatnonzero(rows)
                every = np.arange(len(slopes))
                slopes[:, item] = np.interp(every, found, slopes[found, item]) if found.size else last[:, item]
        return slopes


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
        # the first rows, values and residuals of earlier sweeps
        self._past: deque[tuple[NDArray[np.int64], Tensor, Tensor]] = deque(maxlen=memory)

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        rows, states, outputs, old, _ = sweep
        plain = system.replay(rows, states, outputs)
        residual = plain - old
        values = [(old, residual)]
        first = rows.numpy()[0]
        for began, *past in self._past:
            value, residue = (_aligned(each, first - began, len(rows)) for each in past)
            values.append((value, residue))
        self._past.appendleft((first, old, residual))
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


def _aligned(values: Tensor, shift: NDArray[np.int64], count: int) -> Tensor:
    """`count` rows of `values` [R, B, ..], from row `shift` [B] on for each item; NaN past the end."""
    place = np.arange(count)[:, None] + shift
    known = torch.from_numpy(place < len(values)).to(values.device)
    shown = taken(values, np.minimum(place, len(values) - 1))
    return torch.where(known.reshape(*known.shape, *[1] * (values.ndim - 2)), shown, torch.nan)


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Inner products [R, B] of [R, B, ..]."""
    dtype = accumulation_dtype(one.dtype)
    dims = tuple(range(2, one.ndim))
    return (one.to(dtype) * other.to(dtype)).sum(dims)
