"""A block's inverse as a triangular system: every token from the ones before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.sampling.backend import accumulation_dtype
from fastsample.tarflow.block import Flow
from fastsample.tarflow.layers import Pass

STARTS = ("z", "zeros", "affine")
"""First guesses of a block's tokens: z itself, zeros, and z by the scales and shifts that the block has at zeros.

"affine" takes one pass of one image, unlabelled. "z" and "zeros" are those of GS-Jacobi (arXiv:2505.12849).
"""


@dataclass(frozen=True)
class Guidance:
    """`a + g (a - a_u)`, b likewise, with (a_u, b_u) unlabelled and its attention at `temperature`; 0 is none.

    Annealed, g at token i is `(i + 1) / (T - 1) scale`. Zhai et al. 2024, arXiv:2412.06329, equations 8 and 9.
    """

    scale: float = 0.0
    annealed: bool = True
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"guidance = {self.scale}: give 0 (none) or more")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"attention_temperature = {self.temperature}: give a number above 0")


class BlockSystem:
    """The tokens x of block `index` whose forward pass gives `z` [B, T, C]: state i is token i in the block's order.

    `x_{i+1} = z_{i+1} exp(a_i) + b_i` with (a_i, b_i) from the block's transformer at tokens up to i. Keys and values
    of final tokens are kept, from their final values: tokens that moved after their last pass go through the next one
    again, with those that follow them.
    """

    def __init__(
        self,
        model: Flow,
        index: int,
        z: Tensor,
        labels: Tensor | None,
        guidance: Guidance | None = None,
        start: str = "z",
    ) -> None:
        self._model, self._index, self._guidance = model, index, guidance or Guidance()
        self._guided = self._guidance.scale > 0
        self._z = model.blocks[index].ordered(z).transpose(0, 1)  # a view: all tensors stay [B, T, C] in memory
        wide = self._z.to(accumulation_dtype(z.dtype))
        self._size = (wide.square().mean((0, 2)) * z.shape[-1]).sqrt()  # the norm of a token of the image's RMS
        self._tokens = self._z.clone()
        if start != "z":
            self._tokens[1:] = 0
        if start == "affine":
            zeros, free = self._tokens[1:, :1].transpose(0, 1), model.blocks[index].condition(None)
            at_zeros: Tensor = model(zeros, free, block=index, now=Pass())
            self.advance(torch.zeros(self.length, 1, dtype=torch.int64), self._tokens[:-1], at_zeros.transpose(0, 1))
        self._condition = self._conditions(labels, z.shape[0])
        self._temperature: float | Tensor = 1.0
        if self._guided and self._guidance.temperature != 1.0:
            self._temperature = z.new_ones(2 * z.shape[0], 1, 1, 1)
            self._temperature[z.shape[0] :] = self._guidance.temperature
        self._causal = torch.full((len(self._z), len(self._z)), -torch.inf, dtype=z.dtype, device=z.device).triu(1)
        self._cache = model.blocks[index].empty_cache(z, z.shape[0] * (1 + self._guided))
        self._kept = 0  # tokens whose keys and values are those of their final values

    @property
    def length(self) -> int:
        """The tokens after the first one, which is z's."""
        return len(self._z) - 1

    def initial(self) -> Tensor:
        """z's first token and the guess of the others, [T, B, C]."""
        return self._tokens.clone()

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """Never called: every token has a guess from the start."""
        raise NotImplementedError

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """(a, b) at the tokens `rows`, [R, B, 2 C], by one pass; the tokens before them are final."""
        first = int(rows[0, 0])
        begin = min(first, self._kept)
        tokens = torch.cat([self._tokens[begin:first], states]) if begin < first else states
        outputs = self._pass(tokens.transpose(0, 1), begin)
        self._kept = first + 1
        return outputs.transpose(0, 1)[first - begin :]

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        """The tokens after `rows`."""
        following = slice(int(rows[0, 0]) + 1, int(rows[0, 0]) + 1 + len(rows))
        a, b = outputs.chunk(2, -1)
        wide = a.to(accumulation_dtype(a.dtype), copy=True)  # dense: exp is slow on a part of each row
        scale = wide.exp_().to(a.dtype)
        new = torch.addcmul(b, self._z[following], scale)
        self._tokens[following] = new
        return new

    def replay(self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None = None) -> Tensor:
        """As :meth:`advance`: a token follows from the outputs alone."""
        return self.advance(rows, states, outputs)

    def gains(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """0 and 1: a token changes with its output alone, not with the token before it."""
        return torch.zeros(rows.shape), torch.ones(rows.shape)

    def change(self, rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """RMS change of each token, relative to the RMS of its image's z."""
        return (new - old).to(self._size.dtype).square_().sum(-1).sqrt_() / self._size

    def commit(self, begin: Tensor) -> None:
        """Nothing to do: keys and values are renewed when the next tokens are evaluated."""

    def _pass(self, tokens: Tensor, begin: int) -> Tensor:
        """(a, b) of `tokens` [B, n, C] from `begin` on, guided, as [B, n, 2 C]."""
        count = tokens.shape[1]
        mask = self._causal[begin : begin + count, : begin + count] if begin and count > 1 else None
        if self._guided:
            tokens = tokens.repeat(2, 1, 1)
        now = Pass(begin, mask, self._temperature)
        outputs: Tensor = self._model(tokens, self._condition, block=self._index, now=now, kept=self._cache)
        if not self._guided:
            return outputs
        given, free = outputs.chunk(2)
        weight: float | Tensor = self._guidance.scale
        if self._guidance.annealed:
            steps = torch.arange(begin + 1, begin + 1 + count, device=tokens.device)
            weight = (steps / (len(self._z) - 1) * self._guidance.scale).to(outputs.dtype)[:, None]
        return given + weight * (given - free)

    def _conditions(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """What each row of a pass is conditioned on: guided ones, then the unlabelled ones."""
        block = self._model.blocks[self._index]
        own, free = block.condition(labels), block.condition(None)
        if own is None or free is None or not self._guided:
            return own
        return torch.cat([part.expand(batch, -1, -1) for part in (own, free)])
