"""A stretch of a table's steps in closed form: the coefficients of all its values at once, on the host in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.int64]


class ClosedForm:
    """Steps as `matrices` [n, slots, slots] on values, the sample and what is stored, and what they add to these.

    That is the output by the weights `outputs` [n, slots] and the noise by `noises`, as
    :meth:`fastsample.tables.lower.Lowered.transitions` has them.
    """

    def __init__(self, matrices: Array, outputs: Array, noises: Array) -> None:
        self._matrices, self._outputs, self._noises = matrices, outputs, noises
        self.slots = matrices.shape[1]

    @property
    def noisy(self) -> NDArray[np.bool_]:
        """Which steps add noise."""
        return np.asarray(self._noises.any(1))

    def and_sums(self, weights: Sequence[tuple[float, float]]) -> ClosedForm:
        """With one more value stored: the sum of each step's sample and output by its `weights`."""
        last = self.slots
        matrices = np.pad(self._matrices, [(0, 0), (0, 1), (0, 1)])
        outputs, noises = (np.pad(part, [(0, 0), (0, 1)]) for part in (self._outputs, self._noises))
        matrices[:, last, 0], outputs[:, last] = np.array(weights).T
        return ClosedForm(matrices, outputs, noises)

    def unroll(self, steps: Index, *, replayed: bool, noisy: bool, slopes: Array | None = None) -> Array:
        """What the values before and after each of `steps` [B, R] are made of, [B, R + 1, slots, K].

        The steps are consecutive for each item. The K columns weigh, one block after the other: what is stored before
        the first step, the R outputs that the steps are given, the samples at which those were made, the first of
        which starts the stretch, and the R noises, where it is `noisy`.

        Replayed, every step goes on from the sample that the one before made, with its output moved by `slopes`
        [B, R] times the difference of that sample from the one at which the output was made; without slopes the
        samples after the first have no columns. Else every step goes on from the sample at which its output was made.
        """
        items, count = steps.shape
        output, sample = self.slots - 1, self.slots - 1 + count
        samples = count if slopes is not None or not replayed else 1
        noise = sample + samples
        values = np.zeros((items, count + 1, self.slots, noise + (count if noisy else 0)))
        values[:, 0, 0, sample] = 1.0
        values[:, 0, 1:, :output] = np.eye(self.slots - 1)
        for row in range(count):
            before, given = values[:, row], np.zeros((items, values.shape[-1]))
            given[:, output + row] = 1.0
            if not replayed:
                before = before.copy()
                before[:, 0] = 0.0
                before[:, 0, sample + row] = 1.0
            elif slopes is not None and row:
                given += slopes[:, row, None] * before[:, 0]
                given[:, sample + row] -= slopes[:, row]
            self._step(steps[:, row], before, given, values[:, row + 1])
            if noisy:
                values[:, row + 1, :, noise + row] += self._noises[steps[:, row]]
        return values

    def go_on(self, values: Array, given: Array, steps: Index, *, noisy: bool) -> Array:
        """The samples after each of `steps` [B, n] from `values` [B, slots, K], all with the output `given` [B, K].

        [B, n, K], and where they are `noisy` n more columns for their noises.
        """
        (items, count), columns = steps.shape, given.shape[-1]
        if noisy:
            values, given = (np.pad(part, [(0, 0)] * (part.ndim - 1) + [(0, count)]) for part in (values, given))
        made = np.zeros((items, count, given.shape[-1]))
        for row in range(count):
            after = np.zeros_like(values)
            self._step(steps[:, row], values, given, after)
            if noisy:
                after[:, :, columns + row] += self._noises[steps[:, row]]
            values = after
            made[:, row] = values[:, 0]
        return made

    def _step(self, index: Index, before: Array, given: Array, after: Array) -> None:
        """Step `index` [B] of each item on `before` [B, slots, K] with the output `given` [B, K], to `after`."""
        np.matmul(self._matrices[index], before, out=after)
        after += self._outputs[index][:, :, None] * given[:, None]
