"""`decode_masked`: a masked diffusion language model writes after prompts, by a commit rule."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter, adapter_of, context_of
from fastsample.decoding.cache import Caching
from fastsample.decoding.commit import CommitRule
from fastsample.decoding.decoder import Decoder
from fastsample.decoding.ledger import DecodingLedger
from fastsample.decoding.refinement import LatentRefinement
from fastsample.decoding.rows import Stream
from fastsample.decoding.schedule import Schedule
from fastsample.decoding.settings import Constraints, Settings, check_prompt, constrained
from fastsample.decoding.statistics import Sampling
from fastsample.sampling.noise import Generators, draw


def decode_masked(
    model: Any,
    input_ids: Tensor,
    *,
    rule: CommitRule,
    gen_length: int,
    mask_token_id: int,
    block_length: int | None = None,
    steps: int | None = None,
    attention_mask: Tensor | None = None,
    guidance_scale: float = 0.0,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    repetition_penalty: float = 1.0,
    constraints: Constraints = None,
    generator: Generators = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    cache: Literal["prefix", "dual"] | Caching | None = None,
    refinement: LatentRefinement | None = None,
    schedule: Schedule | None = None,
    scaled: bool | None = None,
    adapter: Adapter | None = None,
    stream: Stream | None = None,
    callback: Callable[[Decoder], object] | None = None,
) -> tuple[Tensor, DecodingLedger]:
    """Write `gen_length` tokens after `input_ids` [B, P]; returns [B, P + gen_length] and what it took.

    The response starts as mask tokens. Each forward gives every undecided position a candidate, and `rule` decides
    which are committed; the rest stays masked (LLaDA, arXiv:2502.09992). Rows advance each on its own, and a finished
    one takes no part in later forwards.

    model: a callable `model(input_ids, attention_mask=..)` with `.logits` [B, L, V]; how a model of transformers is
        called is read off its family, or given by `adapter`.
    block_length: blocks are decoded one after the other, from the left, the last one maybe shorter; by default there
        is one.
    steps: of the schedule that rules such as LowConfidence follow, shared evenly by the blocks; by default one a
        token. Rules such as Threshold ignore it.
    attention_mask: [B, P], 0 for padding, which is on the left.
    guidance_scale: w of (1 + w) logits - w logits with the prompt masked; 0 is none, else each forward counts twice.
    temperature, top_p, top_k, scaled: see :class:`Sampling`.
    repetition_penalty: logits of tokens that the prompt or the text so far has are divided by it where positive, else
        multiplied (arXiv:1909.05858, as in transformers); 1 is none.
    constraints: {response position: token} that is given, for all rows or one mapping a row; see :func:`anchor`.
    generator: of the draws at a temperature, and of random rules; a list gives one a row, which then does not depend
        on its batch.
    eos_token_id: one or more tokens that end a row as soon as all before them is decided; `pad_token_id` follows, by
        default the (first) end token.
    cache: keys and values are kept within a block, see :class:`Caching`; for models whose adapter says so.
    refinement: mixed embeddings and two phases, see :class:`LatentRefinement`; for models with `inputs_embeds`.
    schedule: "even" (LLaDA) or "dream"; by default the family's.
    stream: called after each forward with the list of its :class:`Commit`.
    callback: called after each forward with the :class:`Decoder`; a true result ends the run, with masks left.

    Raises ValueError for wrong input, before any forward, and RuntimeError where logits are not finite.
    """
    adapter = adapter_of(model) if adapter is None else adapter
    ends = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id or ())
    length = gen_length if block_length is None else block_length
    whole = -(-gen_length // length) * length if length > 0 else gen_length
    settings = Settings(
        rule=rule, gen_length=gen_length, block_length=length, steps=whole if steps is None else steps,
        mask_token_id=mask_token_id, schedule=adapter.schedule if schedule is None else schedule,
        sampling=Sampling(temperature, top_p, top_k, adapter.scaled if scaled is None else scaled),
        guidance_scale=guidance_scale, eos_token_ids=ends,
        pad_token_id=pad_token_id if pad_token_id is not None else ends[0] if ends else mask_token_id,
        caching=Caching(cache) if isinstance(cache, str) else cache, refinement=refinement,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    settings.check_model(model, adapter)
    attention = check_prompt(input_ids, attention_mask)
    settings.check_context(input_ids.shape[1], context_of(model, adapter))
    response = constrained(constraints, len(input_ids), gen_length, mask_token_id).to(input_ids.device)
    seed = torch.zeros_like(response)
    if settings.draws:
        seed = draw(functools.partial(torch.randint, 2**63 - 1), response, generator)
    decoder = Decoder(model, adapter, settings, input_ids, attention, response, seed, stream)
    with decoder.ledger.running():
        while not decoder.done:
            decoder.step()
            if callback is not None and callback(decoder):
                decoder.stop()
    return decoder.sequences, decoder.ledger
