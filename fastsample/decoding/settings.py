"""The settings of a decoding run, checked before any forward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter
from fastsample.decoding.cache import Caching
from fastsample.decoding.commit import Checking, CommitRule, Probing
from fastsample.decoding.refinement import LatentRefinement
from fastsample.decoding.schedule import Schedule
from fastsample.decoding.statistics import Sampling

Constraints = Mapping[int, int] | Sequence[Mapping[int, int]] | None
"""Tokens that are given at response positions, for all rows or one mapping a row."""


@dataclass(frozen=True)
class Settings:
    """The arguments of :func:`fastsample.decode_masked`. Raises ValueError where they do not fit together."""

    rule: CommitRule
    gen_length: int
    block_length: int
    steps: int
    mask_token_id: int
    schedule: Schedule
    sampling: Sampling
    guidance_scale: float
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    caching: Caching | None
    refinement: LatentRefinement | None
    repetition_penalty: float

    def __post_init__(self) -> None:
        for name in ("gen_length", "block_length", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: give 1 or more")
        if self.steps % self.blocks:
            raise ValueError(f"steps = {self.steps} with {self.blocks} blocks: give a multiple of the blocks")
        if self.mask_token_id is None or self.mask_token_id < 0:
            raise ValueError(
                f"mask_token_id = {self.mask_token_id}: give the token that stands for what is undecided"
            )
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale = {self.guidance_scale}: give 0 (none) or more")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty = {self.repetition_penalty}: give 1 (none) or more, above 0")
        if not isinstance(self.rule, CommitRule):
            raise ValueError(f"rule = {self.rule!r}: give a commit rule such as fastsample.LowConfidence()")
        if self.schedule not in ("even", "dream"):
            raise ValueError(f'schedule = {self.schedule!r}: give "even" or "dream"')
        self.rule.check(self.gen_length)
        if self.caching is not None and self.caching.kind == "dual" and self.rule.reads == "response":
            raise ValueError(
                f'cache = "dual" evaluates a block alone, and {type(self.rule).__name__} reads the whole response: '
                'use "prefix"'
            )
        if isinstance(self.rule, Checking):
            for name, value in (("cache", self.caching), ("refinement", self.refinement)):
                if value is not None:
                    raise ValueError(
                        f"{name} = {value}: {type(self.rule).__name__} looks at drafts as plain masks, leave it out"
                    )
        if isinstance(self.rule, Probing) and (self.caching is not None or self.refinement is not None):
            raise ValueError(f"rule = {type(self.rule).__name__} probes whole texts: give no cache and no refinement")

    @property
    def blocks(self) -> int:
        """How many blocks the response has; the last one may be shorter."""
        return -(-self.gen_length // self.block_length)

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.blocks

    @property
    def longest(self) -> int:
        """Forwards that a block takes at most: a rule commits a token in each, or follows the schedule."""
        returns = self.rule.returns if isinstance(self.rule, Checking) else 0
        return max(self.steps_per_block, self.block_length) * (1 + returns)

    @property
    def draws(self) -> bool:
        """Whether the run needs random numbers."""
        return self.rule.random or self.sampling.temperature > 0

    def check_model(self, model: object, adapter: Adapter) -> None:
        """Raise ValueError where the model lacks what the run needs."""
        name = type(model).__name__
        if isinstance(self.rule, Checking) and self.rule.form == "shadows" and not adapter.shadows:
            raise ValueError(
                f"model = {name} shifts its logits or takes no 4-D attention mask with position ids: "
                f'give {type(self.rule).__name__} form = "rows"'
            )
        if adapter.blocks is not None and (adapter.visible is None or adapter.blocks < 1):
            raise ValueError(
                f"blocks = {adapter.blocks} of the adapter: give 1 or more, and `visible`, the model's 4-D masks"
            )
        if self.refinement is not None and not adapter.embeds:
            raise ValueError(
                f"model = {name} takes no inputs_embeds, which latent refinement needs: decode without it"
            )
        if self.caching is not None and not (adapter.caches or adapter.attends):
            raise ValueError(f"model = {name} has no key-value cache that windows can replace: give cache = None")

    def check_context(self, prompt: int, longest: int | None) -> None:
        """Raise ValueError where a prompt of so many tokens and the response are more than the model takes."""
        if longest is not None and prompt + self.gen_length > longest:
            raise ValueError(
                f"gen_length = {self.gen_length} after a prompt of {prompt} tokens: the model takes {longest}, "
                "give less"
            )


def check_prompt(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The attention mask of a prompt [B, P]; ValueError for another shape or dtype, or padding on the right."""
    if input_ids.ndim != 2 or input_ids.dtype != torch.int64:
        raise ValueError(f"input_ids is {input_ids.dtype} {tuple(input_ids.shape)}: give int64 tokens [B, L]")
    if attention_mask is None:
        return torch.ones_like(input_ids)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}: input_ids has {tuple(input_ids.shape)}"
        )
    if bool((attention_mask[:, 1:].bool() < attention_mask[:, :-1].bool()).any()):
        raise ValueError("attention_mask has a 0 after a 1: pad prompts on the left")
    return attention_mask.to(input_ids)


def constrained(constraints: Constraints, rows: int, length: int, mask_token_id: int) -> Tensor:
    """int64 [B, length] on the CPU: the given tokens, the mask token elsewhere. ValueError for what does not fit."""
    each = [constraints] * rows if constraints is None or isinstance(constraints, Mapping) else list(constraints)
    if len(each) != rows:
        raise ValueError(f"constraints has {len(each)} mappings for {rows} rows: give one, or one a row")
    response = torch.full((rows, length), mask_token_id)
    for row, given in enumerate(each):
        for position, token in (given or {}).items():
            if not 0 <= position < length:
                raise ValueError(f"constraints at position {position}: the response has {length} tokens from 0")
            if token == mask_token_id or token < 0:
                raise ValueError(f"constraints: token {token} at position {position}: give a token of the text")
            response[row, position] = token
    return response
