"""Jacobi decoding of causal language models: a block's tokens guessed at once, and again until they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.fixed_point.blockwise import BlockIteration
from fastsample.fixed_point.iterations import ParallelReport
from fastsample.fixed_point.updates import Jacobi
from fastsample.sampling.noise import Generators, draw


class TextSystem:
    """The tokens that `model` writes after `input_ids`: state 0 is the prompt's last one, state i the i-th new one.

    The expensive map gives every position's next token: the arg-max of the logits, over `temperature` and with a
    Gumbel noise that is fixed for the position where that is above 0. Keys and values of final tokens are kept.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        length: int,
        temperature: float,
        generator: Generators,
    ) -> None:
        from transformers import DynamicCache  # light: only texts need transformers

        self._model, self._length, self._temperature, self._generator = model, length, temperature, generator
        self._prompt, self._last = input_ids[:, :-1], input_ids[:, -1]
        self._mask, self._cache = attention_mask, DynamicCache(config=model.config)
        self._noise: list[Tensor] = []  # of each position, in order
        if self._prompt.shape[1]:
            self._forward(self._prompt, 0, keep=0)

    @property
    def length(self) -> int:
        """The new tokens."""
        return self._length

    def initial(self) -> Tensor:
        """The prompt's last token, as the guess of all that follow too: [length + 1, B]."""
        return self._last.expand(self._length + 1, -1).clone()

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """Not asked: every state has a guess."""
        raise NotImplementedError

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """The token after each of `states` [R, B], by one forward pass over the rows."""
        begin = self._prompt.shape[1] + int(rows[0, 0])
        beyond = self._cache.get_seq_length() - begin
        if beyond > 0:
            self._cache.crop(-beyond)
        logits = self._forward(states.T, begin, keep=len(rows)).float()
        if self._temperature > 0:
            logits = logits / self._temperature + self._gumbel(int(rows[0, 0]), logits)
        return logits.argmax(-1).T

    def advance(self, rows: Tensor, states: Tensor, outputs: Tensor) -> Tensor:
        """The outputs."""
        return outputs

    def replay(self, rows: Tensor, states: Tensor, outputs: Tensor, slopes: Tensor | None = None) -> Tensor:
        """The outputs."""
        return outputs

    def gains(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A token is its output."""
        return torch.zeros(rows.shape), torch.ones(rows.shape)

    def change(self, rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """1 where a token changed."""
        return (new != old).float()

    def commit(self, begin: Tensor) -> None:
        """The cache is cut back when the next rows are evaluated."""

    def _forward(self, tokens: Tensor, begin: int, keep: int) -> Tensor:
        end = begin + tokens.shape[1]
        mask = torch.nn.functional.pad(self._mask, (0, max(0, end - self._mask.shape[1])), value=1)[:, :end]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, begin:]
        output = self._model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=self._cache, use_cache=True
        )
        logits: Tensor = output.logits[:, -keep:]
        return logits

    def _gumbel(self, begin: int, logits: Tensor) -> Tensor:
        """Noise [B, R, V] of the positions from `begin`, drawn when they are first met, in order."""
        while len(self._noise) < begin + logits.shape[1]:
            self._noise.append(_gumbel_like(logits[:, 0], self._generator))
        return torch.stack(self._noise[begin : begin + logits.shape[1]], 1)


@torch.no_grad()
def jacobi_decode(
    model: Any,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    block_length: int = 16,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int = 0,
    generator: Generators = None,
) -> tuple[Tensor, ParallelReport]:
    """What a causal `model` of transformers writes after `input_ids` [B, L], exactly, in at most as many passes.

    All `block_length` tokens of a block are guessed in one forward pass, and again from those guesses, until they
    stay (Song et al. 2021, arXiv:2002.03629; Santilli et al. 2023, arXiv:2305.10427): the first wrong one is right
    after each pass. At `temperature` 0 the result is that of greedy decoding, else that of sampling with a Gumbel
    noise for each position, drawn in order from `generator` (a list: one a row). Prompts of a batch are padded on the
    left, with `attention_mask` [B, L]. Rows end at `eos_token_id`, followed by `pad_token_id`.

    Returns [B, L + new tokens] and the report: `sweeps` are the forward passes after the prompt's.
    Raises ValueError for lengths below 1, a negative temperature, right padding or a model without a key-value cache,
    before any pass.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("block_length", block_length)):
        if value < 1:
            raise ValueError(f"{name} = {value}: give 1 or more")
    if not temperature >= 0:
        raise ValueError(f"temperature = {temperature}: give 0 (greedy) or more")
    if getattr(model.config, "is_encoder_decoder", False) or not getattr(model, "_supports_cache_class", True):
        raise ValueError(f"model = {type(model).__name__} is not a causal model with a key-value cache")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if not bool(mask[:, -1].all()):
        raise ValueError("attention_mask ends with 0: pad prompts on the left")
    system = TextSystem(model, input_ids, mask, max_new_tokens, temperature, generator)
    ends = [*range(block_length, max_new_tokens, block_length), max_new_tokens]
    iteration = BlockIteration(system, Jacobi(), ends)
    stops = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or []))
    stops = stops.to(input_ids)
    ended = torch.zeros(len(input_ids), dtype=torch.bool)
    while not iteration.done and not bool(ended.all()):
        iteration.sweep(system.evaluate(iteration.rows, iteration.states))
        ended = torch.isin(iteration.trajectory[1 : iteration.begin + 1], stops).any(0).cpu()
    new = iteration.trajectory[1 : iteration.begin + 1].T
    is_stop = torch.isin(new, stops)
    past = is_stop.cumsum(1) - is_stop.long() > 0
    new = new.masked_fill(past, pad_token_id)
    longest = int((~past).sum(1).max())
    return torch.cat([input_ids, new[:, :longest]], 1), iteration.report


def _gumbel_like(logits: Tensor, generator: Generators) -> Tensor:
    """Standard Gumbel noise shaped as `logits` [B, V], of one stream, or of one for each row."""
    return draw(_gumbel, logits, generator).to(logits.dtype)


def _gumbel(shape: torch.Size, *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """float32 from uniform numbers in float64, for the sake of the tails, where the device has it."""
    dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32  # MPS and some XPUs have none
    uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype)
    return -(-uniform.clamp(min=torch.finfo(dtype).tiny).log()).log().float()
