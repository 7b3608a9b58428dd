"""What the iterations need to know of a triangular system `x_{i+1} = phi_i(x_0 .. x_i)`, i = 0 .. length - 1."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class TriangularSystem(Protocol):
    """States that each follow from the earlier ones: a trajectory, the tokens of a flow's block, a text.

    `phi_i` is an expensive map `output_i = evaluate(i, x_i)` (a network, all rows in one batch) and a cheap one
    `x_{i+1} = advance(i, x_i, output_i)`, which may also read what earlier rows left. Rows are [R, B]: the indices i
    of R consecutive states of each of B batch items, the same in every column where blocks are solved in turn.
    Rows past the end are clamped to `length - 1`, and what is returned for them is not read.
    """

    @property
    def length(self) -> int:
        """How many states follow `x_0`."""

    def initial(self) -> Tensor:
        """`x_0` as [1, B, ..], or with a guess of every state, [length + 1, B, ..], the caller's to write to."""

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """A first guess of the states `rows` [R, B], those after `reached` [B], whose values are `states` [B, ..]."""

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """The outputs [R, B, ..] of the expensive map at `states` [R, B, ..]."""

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        """The states `rows + 1`, each from its own of `states` and `outputs`, and from those of earlier rows."""

    def replay(self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None = None) -> Tensor:
        """The states `rows + 1` one after the other from the first of `states`.

        Each uses its own of `outputs`, moved by `slopes` [R, B] times the state's difference from that of `states`.
        """

    def gains(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """By how much states `rows + 1` move with their own state and with its output, [R, B] each."""

    def change(self, rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """How far each state of `rows` moved, [R, B], in the unit of the tolerance."""

    def commit(self, begin: Tensor) -> None:
        """States up to `begin` [B] are final; what only earlier ones need can be dropped."""
