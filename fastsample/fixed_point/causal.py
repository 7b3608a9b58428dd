"""A causal language model of transformers as a map from tokens to next-token scores that can take tokens back."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

_BY_POSITION = {"DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer"}
"""The cache layers of transformers that hold keys and values by position, so that the last ones can be dropped."""

_NEUTRAL = {
    "num_beams": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "token_healing": False,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "sequence_bias": None,
    "guidance_scale": 1.0,
    "watermarking_config": None,
}
"""Settings of a generation config that change what greedy decoding writes, with the values that do not."""


class CausalModel:
    """The `model`, its key-value cache, and the attention mask [B, L] of the prompt.

    `scores(tokens, begin, keep)` gives the logits of the last `keep` of `tokens` [B, n], which stand from position
    `begin` on: what the cache held from there is dropped first.
    """

    def __init__(self, model: Any, attention_mask: Tensor) -> None:
        from transformers import DynamicCache  # light: only texts need transformers

        self._model, self._mask = model, attention_mask
        # No config: every layer keeps all positions, where one that knows of a sliding window forgets those outside.
        self._cache = DynamicCache()
        accepted = inspect.signature(type(model).forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_logits = "logits_to_keep" in accepted

    @property
    def held(self) -> int:
        """The positions whose keys and values are at hand."""
        return int(self._cache.get_seq_length())

    def scores(self, tokens: Tensor, begin: int, keep: int) -> Tensor:
        """Next-token logits [B, keep, V] after the last `keep` of `tokens`."""
        if self.held > begin:
            self._cache.crop(begin - self.held)
        end = begin + tokens.shape[1]
        mask = torch.nn.functional.pad(self._mask, (0, max(0, end - self._mask.shape[1])), value=1)[:, :end]
        options: dict[str, Any] = {}
        if self._takes_positions:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, begin:]
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        output = self._model(
            input_ids=tokens, attention_mask=mask, past_key_values=self._cache, use_cache=True, **options
        )
        logits: Tensor = output.logits[:, -keep:]
        return logits


def check_causal(model: Any, length: int) -> None:
    """ValueError, in one line, for a `model` whose greedy text of `length` tokens Jacobi decoding would not write."""
    from transformers import PreTrainedModel  # light: only texts need transformers

    name = type(model).__name__
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise ValueError(
            f"model = {name} has no generate of transformers: give a causal model such as LlamaForCausalLM"
        )
    reason = _no_rollback(model) or _other_greedy(model) or _too_long(model, length) or _moving_angles(model, length)
    if reason:
        raise ValueError(f"model = {name} {reason}")


def _no_rollback(model: Any) -> str:
    """Why guessed tokens cannot be taken back, or nothing."""
    from transformers import DynamicCache  # light: only texts need transformers

    if getattr(model.config, "is_encoder_decoder", False):
        return "is an encoder and a decoder: give a causal model"
    if "past_key_values" not in inspect.signature(type(model).forward).parameters:
        return "has no key-value cache of transformers: decode it by model.generate"
    if getattr(model, "_is_stateful", False) or not getattr(model, "_supports_cache_class", True):
        return "keeps a state from which tokens cannot be taken back: decode it by model.generate"
    causal = all(getattr(module, "is_causal", True) for module in model.modules())
    both_ways = not causal and getattr(model.config, "is_decoder", True) is False
    if both_ways or getattr(model.config, "is_causal", True) is False:
        return "attends to later tokens too: give a causal model, with is_decoder=True or no is_causal in its config"
    try:
        layers = getattr(DynamicCache(config=model.config), "layers", [])
    except (AttributeError, KeyError, TypeError, ValueError):
        return "has a cache that transformers' DynamicCache cannot lay out: decode it by model.generate"
    other = sorted({type(layer).__name__ for layer in layers} - _BY_POSITION)
    if other:
        return f"has cache layers ({', '.join(other)}) that cannot be cut back: decode it by model.generate"
    return ""


def _other_greedy(model: Any) -> str:
    """What makes the model's own greedy text another one than that of its arg-maxes, or nothing."""
    if model.training:
        return "is in training mode, where dropout makes every pass another one: call model.eval()"
    config = getattr(model, "generation_config", None)
    for key, neutral in _NEUTRAL.items():
        value = getattr(config, key, None)
        if value not in (None, [], neutral):
            return f"has generation_config.{key} = {value}, which is not applied here: set it to {neutral}"
    return ""


def _too_long(model: Any, length: int) -> str:
    """Whether a table of positions ends before the last but one token of `length`: nothing is read after the last."""
    text = model.get_decoder()  # what reads pictures has tables of its own
    known = [
        module.num_embeddings - getattr(module, "offset", 0)  # OPT and Bart do not use their first two
        for path, module in text.named_modules()
        if isinstance(module, torch.nn.Embedding) and ("position" in (last := _last(path)) or last == "wpe")
    ]
    known += [
        len(table) for path, table in text.named_buffers() if _last(path) in ("embed_positions", "pos_encoding")
    ]
    if known and min(known) < length - 1:
        return f"knows {min(known)} positions, for a text of {length}: lower max_new_tokens"
    return ""


def _moving_angles(model: Any, length: int) -> str:
    """Whether rotary angles change within `length` tokens: guesses would change them for the tokens before."""
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for rope in (ropes, *(each for each in ropes.values() if isinstance(each, dict))):  # or one a kind of layer
        kind, known = rope.get("rope_type") or "", length
        if "dynamic" in kind:
            known = config.max_position_embeddings
        if kind == "longrope":
            known = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        if known < length - 1:
            return (
                f"has {kind} angles, other ones after {known} positions: lower max_new_tokens or use model.generate"
            )
    return ""


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]
