"""How a sweep moves its states: the rules of Picard, replay, secant and triangular Anderson iteration.

Write the system's step as `x_{i+1} = F_i(x_i)`. From guesses y and their `F_i(y_i)`, a rule sets
`z_{i+1} = F_i(y_i) + J_i (z_i - y_i)` along the window: exact where the inputs were (`z_i = y_i`), for any J.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastsample.fixed_point.rows import taken, visible
from fastsample.fixed_point.triangular import TriangularSystem
from fastsample.sampling.backend import accumulation_dtype, product


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
        moved = system.advance(sweep.rows, sweep.states, sweep.outputs).sub_(sweep.states)
        new = moved.cumsum_(0).add_(sweep.states[:1])
        return new, new


class Replay(Update):
    """The cheap map run again with this sweep's outputs: exact for what is linear in the states."""

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        new = system.replay(sweep.rows, sweep.states, sweep.outputs)
        return new, new


class Secant(Update):
    """Replay with outputs that follow their states, by the slope of the last two sweeps, free of evaluations.

    For each state and batch item `K = <dy, du> / <dy, dy>` between two sweeps' states y and outputs u. A step's
    `J = A + B K` (A, B: the gains of state and output) is kept within 0 and `largest`. Where there is one sweep only,
    K is that of `known`, one for each of the system's states; without it J is 1, as Picard's. Unlike a J on the step
    alone, it also moves what later steps read of the outputs.
    """

    def __init__(self, largest: float = 1.5, known: NDArray[np.float64] | None = None) -> None:
        self.largest, self._known = largest, known
        # the last sweep's first rows, states, outputs, and which rows were evaluated
        self._last: tuple[NDArray[np.int64], Tensor, Tensor, NDArray[np.bool_] | None] | None = None
        self._slopes = np.zeros((0, 0))

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        rows, states, outputs, _, evaluated = sweep
        first, shown = rows.numpy()[0], visible(outputs, states)
        of_state, of_output = (part.numpy() for part in system.gains(rows))
        self._slopes = self._measured(first, states, shown, evaluated)
        if self._known is not None:
            self._slopes = np.where(np.isfinite(self._slopes), self._slopes, self._known[rows.numpy()])
        factor = of_state + of_output * self._slopes
        factor = np.nan_to_num(factor, nan=1.0, posinf=1.0, neginf=1.0).clip(0, self.largest)
        self._last = first, states, shown, evaluated
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
        place, known = _met(len(old_states), first - began, len(states))
        count = len(place)
        step = states[:count] - taken(old_states, place)
        self._last = None
        del old_states  # let go once its difference is made
        turned = outputs[:count] - taken(old_outputs, place)
        dots = torch.cat([_dots(step, turned), _dots(step, step)]).cpu().numpy().astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            slopes[:count] = np.where(known, dots[:count] / dots[count:], np.nan)
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
        self.memory, self.damping = memory, damping
        # the last sweep's first rows, residuals and states, and how these differed between earlier ones, newest first
        self._last: tuple[NDArray[np.int64], Tensor, Tensor] | None = None
        self._differences: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []

    def __call__(self, system: TriangularSystem, sweep: Sweep) -> tuple[Tensor, Tensor]:
        first = sweep.rows.numpy()[0]
        plain = system.replay(sweep.rows, sweep.states, sweep.outputs)
        residual = plain - sweep.old
        last, self._last = self._last, (first, residual, plain)
        if last is None:
            return plain, plain
        began, past_residual, past = last
        last = None  # each is let go once its difference is made
        turned = _difference(residual, past_residual, first - began)
        del past_residual
        moved = _difference(plain, past, first - began)
        del past
        differences = [(first, turned, moved), *self._differences]
        self._differences = differences[: self.memory - 1]
        turns = [_aligned(turn, first - began, len(residual)) for began, turn, _ in differences]
        moves = [_aligned(move, first - began, len(residual)) for began, _, move in differences]
        weights = self._weights(turns, residual)
        new = plain.clone()
        for weight, moved in zip(weights, moves, strict=True):
            factor = torch.from_numpy(weight[: len(moved)]).to(moved.dtype).to(moved.device)
            new[: len(moved)].addcmul_(factor.reshape(*factor.shape, *[1] * (moved.ndim - 2)), moved, value=-1)
        return new, plain

    def _weights(self, turns: list[Tensor], residual: Tensor) -> NDArray[np.float64]:
        """Those of each row's differences [m, R, B]: of the residuals up to that row, 0 for the leading one."""
        pairs = [(k, other) for k in range(len(turns)) for other in range(k, len(turns) + 1)]
        dots = np.zeros((len(turns), len(turns) + 1, *residual.shape[:2]))
        found = [_dots(turns[k], turns[other] if other < len(turns) else residual) for k, other in pairs]
        for (k, other), values in zip(pairs, found, strict=True):
            dots[k, other, : len(values)] = values.cpu().numpy()
            if other < len(turns):
                dots[other, k] = dots[k, other]
        dots = np.moveaxis(dots.cumsum(2), (0, 1), (2, 3))
        gram, right = dots[..., :-1], dots[..., -1:]
        ridge = self.damping * gram.diagonal(axis1=-2, axis2=-1).mean(-1) + np.finfo(np.float64).tiny
        weights = np.linalg.solve(gram + ridge[..., None, None] * np.eye(len(turns)), right)[..., 0]
        weights[0] = 0.0
        return np.moveaxis(np.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0), -1, 0)


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


def _met(length: int, shift: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where the first of `count` rows lie among `length` earlier ones, `shift` [B] further on, and whether they do.

    [n, B], the n rows that some item has met; others are put at the last.
    """
    place = np.arange(min(count, length - int(shift.min())))[:, None] + shift
    return np.minimum(place, length - 1), place < length


def _aligned(values: Tensor, shift: NDArray[np.int64], count: int) -> Tensor:
    """`values` [R, B, ..] of earlier rows at those of now, `shift` [B] further on; 0 where an item had none."""
    place, known = _met(len(values), shift, count)
    shown = taken(values, place)
    if known.all():
        return shown
    inside = torch.from_numpy(known).to(shown.device)
    return torch.where(inside.reshape(*known.shape, *[1] * (shown.ndim - 2)), shown, 0.0)


def _difference(now: Tensor, before: Tensor, shift: NDArray[np.int64]) -> Tensor:
    """`now` less `before`, whose rows are `shift` [B] back, of the rows that some item had; else 0."""
    place, known = _met(len(before), shift, len(now))
    moved = (now[: len(place)] - taken(before, place)).nan_to_num_(0.0, 0.0, 0.0)
    if not known.all():
        inside = torch.from_numpy(known).to(moved.device)
        moved.mul_(inside.reshape(*known.shape, *[1] * (moved.ndim - 2)))
    return moved


def _dots(one: Tensor, other: Tensor) -> Tensor:
    """Inner products [R, B] of [R, B, ..], of the rows that both have."""
    count, dtype = min(len(one), len(other)), accumulation_dtype(one.dtype)
    flat = [part[:count].flatten(2).flatten(0, 1).to(dtype) for part in (one, other)]
    return product(flat[0][:, None], flat[1][:, :, None]).reshape(count, one.shape[1])
