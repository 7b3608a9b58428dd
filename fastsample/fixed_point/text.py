"""Jacobi decoding of causal language models: a block's tokens guessed at once, and again until they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.fixed_point.blockwise import BlockIteration
from fastsample.fixed_point.causal import CausalModel, check_causal
from fastsample.fixed_point.iterations import ParallelReport
from fastsample.fixed_point.updates import Jacobi
from fastsample.sampling.noise import Generators, draw

Choice = Callable[[int, Tensor], Tensor]
"""From the first row's number and its and the next rows' logits [B, R, V], tokens [B, R]."""


class TextSystem:
    """The tokens that `model` writes after `input_ids`: state 0 is the prompt's last one, state i the i-th new one.

    The expensive map gives every position's next token, as `choose` takes it from the logits; after the tokens where
    `ends` (of the tokens so far [B, n]) is true it is `pad`. Keys and values of final tokens are kept.
    """

    def __init__(
        self,
        model: CausalModel,
        input_ids: Tensor,
        length: int,
        choose: Choice,
        ends: Callable[[Tensor], Tensor],
        pad: int,
    ) -> None:
        self._model, self._length, self._choose, self._ends, self._pad = model, length, choose, ends, pad
        self._written, self._prompt = input_ids, input_ids.shape[1]
        self._outputs = input_ids[:, :0]
        self.over = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        self.longest = 0

    @property
    def length(self) -> int:
        """The new tokens."""
        return self._length

    def initial(self) -> Tensor:
        """The prompt's last token, as the guess of all that follow too: [length + 1, B]."""
        return self._written[:, -1].expand(self._length + 1, -1).clone()

    def extend(self, reached: Tensor, rows: Tensor, states: Tensor) -> Tensor:
        """Not asked: every state has a guess."""
        raise NotImplementedError

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """The token after each of `states` [R, B], by one forward pass over the rows, and at first the prompt."""
        text = torch.cat([self._written, states[1:].T], 1)
        begin = min(self._model.held, self._written.shape[1] - 1)
        tokens = self._choose(int(rows[0, 0]), self._model.scores(text[:, begin:], begin, keep=len(rows)))
        over = self.over
        for row in range(1, len(rows)):  # the first row's state is final, and known
            over = over | self._ends(text[:, : text.shape[1] - len(rows) + 1 + row])
            tokens[:, row] = tokens[:, row].masked_fill(over, self._pad)
        tokens[:, 0] = tokens[:, 0].masked_fill(self.over, self._pad)
        self._outputs = tokens
        return tokens.T

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
        """Write the final tokens down; the cache is cut back when the next rows are evaluated."""
        final = int(begin[0]) - (self._written.shape[1] - self._prompt)
        for token in self._outputs[:, :final].T:
            self._written = torch.cat([self._written, token[:, None]], 1)
            self.longest += int(not self.over.all())
            self.over = self.over | self._ends(self._written)


@torch.no_grad()
def jacobi_decode(
    model: Any,
    input_ids: Tensor,
    *,
    max_new_tokens: int,
    block_length: int = 16,
    attention_mask: Tensor | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    generator: Generators = None,
) -> tuple[Tensor, ParallelReport]:
    """What a causal `model` of transformers writes after `input_ids` [B, L], exactly, in at most as many passes.

    All `block_length` tokens of a block are guessed in one forward pass, and again from those guesses, until they
    stay (Song et al. 2021, arXiv:2002.03629; Santilli et al. 2023, arXiv:2305.10427): the first wrong one is right
    after each pass. At `temperature` 0 the result is that of `model.generate(do_sample=False)`, else that of sampling
    from the most likely tokens of joint probability `top_p`, with a Gumbel noise for each position, drawn in order
    from `generator` (a list: one a row). Prompts of a batch are padded on the left, with `attention_mask` [B, L];
    without one, pad tokens that end no text are padding, as for `generate`. In half precision a pass over a block
    rounds otherwise than one over a token: where two tokens are all but tied, the other one may be written.

    A row ends at `eos_token_id` (None: those of the model's generation config; an empty list: none) or where one of
    `stop_strings` (None: the config's; needs the `tokenizer` that spells them) is complete, and goes on as
    `pad_token_id` (None: the config's, else the first end token, else 0).

    Returns [B, L + new tokens] and the report, whose `sweeps` are the forward passes.
    Raises ValueError for lengths below 1, a negative temperature, a `top_p` outside (0, 1] or without a temperature,
    right padding, stop strings without a tokenizer, a model in training mode, one that greedy decoding of
    transformers would decode otherwise (penalties or beams in its generation config), one from whose cache tokens
    cannot be taken back (recurrent and hybrid ones), or whose positions end or change their angles within the text
    (dynamic and longrope), before any pass.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("block_length", block_length)):
        if value < 1:
            raise ValueError(f"{name} = {value}: give 1 or more")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}: give [batch, tokens], with a token at least")
    choose = _chooser(temperature, top_p, generator)
    check_causal(model, input_ids.shape[1] + max_new_tokens)
    settings = getattr(model, "generation_config", None)
    stops = _tokens(getattr(settings, "eos_token_id", None) if eos_token_id is None else eos_token_id)
    if pad_token_id is None:
        pad_token_id = getattr(settings, "pad_token_id", None)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if attention_mask is None and pad_token_id is not None and pad_token_id not in stops:
        mask = input_ids.ne(pad_token_id).to(mask)
    if mask.shape != input_ids.shape or not bool(mask[:, -1].all()):
        raise ValueError("attention_mask is not of input_ids' shape or ends with 0: pad prompts on the left")
    if pad_token_id is None:
        pad_token_id = stops[0] if stops else 0
    if stop_strings is None:
        stop_strings = getattr(settings, "stop_strings", None)
    ends = _endings(torch.tensor(stops).to(input_ids), stop_strings, tokenizer)
    system = TextSystem(CausalModel(model, mask), input_ids, max_new_tokens, choose, ends, pad_token_id)
    blocks = [*range(block_length, max_new_tokens, block_length), max_new_tokens]
    iteration = BlockIteration(system, Jacobi(), blocks)
    while not iteration.done and not bool(system.over.all()):
        iteration.sweep(system.evaluate(iteration.rows, iteration.states))
    new = iteration.trajectory[1 : system.longest + 1].T
    return torch.cat([input_ids, new], 1), iteration.report


def _chooser(temperature: float, top_p: float, generator: Generators) -> Choice:
    """The arg-max of the logits, or a draw that stays the same for a position."""
    if not temperature >= 0:
        raise ValueError(f"temperature = {temperature}: give 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: give a probability above 0, at most 1")
    if temperature == 0:
        if top_p < 1:
            raise ValueError(f"top_p = {top_p} has no effect on greedy decoding: give a temperature above 0")
        return lambda begin, logits: logits.float().argmax(-1)  # as transformers: ties in half precision too
    return _Sampler(temperature, top_p, generator)


class _Sampler:
    """Gumbel-max sampling; noise is kept for the rows that may be drawn again, those from the first on."""

    def __init__(self, temperature: float, top_p: float, generator: Generators) -> None:
        from transformers import TopPLogitsWarper  # light: only texts need transformers

        self._temperature, self._generator = temperature, generator
        self._nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        self._noise: list[Tensor] = []
        self._begin = 0

    def __call__(self, begin: int, logits: Tensor) -> Tensor:
        del self._noise[: begin - self._begin]
        self._begin = begin
        while len(self._noise) < logits.shape[1]:
            self._noise.append(draw(_gumbel, logits[:, 0], self._generator))
        scores = logits.float() / self._temperature
        if self._nucleus is not None:
            scores = self._nucleus(None, scores.flatten(0, 1)).unflatten(0, scores.shape[:2])
        return (scores + torch.stack(self._noise[: logits.shape[1]], 1)).argmax(-1)


def _tokens(ids: int | Sequence[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _endings(stops: Tensor, strings: str | Sequence[str] | None, tokenizer: Any) -> Callable[[Tensor], Tensor]:
    """Whether each of some tokens [B, n] ends a text: with one of `stops`, or completing one of `strings`."""
    if not strings:
        return lambda tokens: torch.isin(tokens[:, -1], stops)
    if tokenizer is None:
        raise ValueError(f"stop_strings = {strings!r} needs the tokenizer that spells them: give tokenizer=")
    from transformers import StopStringCriteria  # light: only texts need transformers

    complete = StopStringCriteria(tokenizer, strings if isinstance(strings, str) else list(strings))
    return lambda tokens: torch.isin(tokens[:, -1], stops) | complete(tokens, None)


def _gumbel(shape: torch.Size, *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """float32 from uniform numbers in float64, for the sake of the tails, where the device has it."""
    dtype = torch.float64 if device.type in ("cpu", "cuda") else torch.float32  # MPS and some XPUs have none
    uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype)
    return -(-uniform.clamp(min=torch.finfo(dtype).tiny).log()).log().float()
