"""How a family of masked diffusion language models is called: which arguments, which logits predict which token."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastsample.decoding.schedule import Schedule

Arguments = Callable[[Tensor, bool, slice], dict[str, Any]]
"""From the attention mask [B, L], whether it has zeros, and the window of positions that is evaluated."""


def plain(mask: Tensor, padded: bool, window: slice) -> dict[str, Any]:
    """The 2-D attention mask, always."""
    return {"attention_mask": mask}


def where_padded(mask: Tensor, padded: bool, window: slice) -> dict[str, Any]:
    """The 2-D attention mask where there is padding: models with relative positions (LLaDA)."""
    return {"attention_mask": mask} if padded else {}


def with_positions(mask: Tensor, padded: bool, window: slice) -> dict[str, Any]:
    """As :func:`where_padded`, with positions that count from the first token that is not padding."""
    return {"attention_mask": mask, "position_ids": positions_of(mask)[:, window]} if padded else {}


def windowed(mask: Tensor, padded: bool, window: slice) -> dict[str, Any]:
    """Positions of the window, and a 4-D mask over all keys where there is padding (the bundled model)."""
    visible = {"attention_mask": mask[:, None, None].bool()} if padded else {}
    return {**visible, "position_ids": positions_of(mask)[:, window]}


def dream(mask: Tensor, padded: bool, window: slice) -> dict[str, Any]:
    """Dream's: "full", or a 4-D boolean mask with positions."""
    if not padded:
        return {"attention_mask": "full"}
    length = mask.shape[1]
    return {
        "attention_mask": mask[:, None, None].bool().expand(-1, 1, length, length),
        "position_ids": positions_of(mask)[:, window],
    }


def masked(visible: Tensor, positions: Tensor) -> dict[str, Any]:
    """A 4-D boolean mask with positions."""
    return {"attention_mask": visible, "position_ids": positions}


def added(visible: Tensor, positions: Tensor, *, dtype: torch.dtype) -> dict[str, Any]:
    """As :func:`masked`, by a mask added to the scores, which every kind of attention takes."""
    hidden = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return {"attention_mask": hidden.masked_fill_(~visible, torch.finfo(dtype).min), "position_ids": positions}


def positions_of(mask: Tensor) -> Tensor:
    """int64 [B, L]: 0 for padding and the first token after it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@dataclass(frozen=True)
class Adapter:
    """A family of models.

    arguments: what is passed beside `input_ids` or `inputs_embeds`.
    shifted: the logits at position i predict token i + 1 (Dream).
    keeps: how the forward is told which logits are read: "logits_to_keep" (an index tensor), "num_logits_to_keep"
        (the last n), or None.
    visible: how a forward is told who sees whom (bool [B, 1, L, L]) at which positions [B, L], where the model takes
        both; else None.
    padding: a token without a position; the others are numbered from the number after it, not from 0 (RoBERTa).
        None where positions are those of `arguments`.
    embeds: it takes `inputs_embeds`. caches: it takes `past_key_values` as
        :class:`fastsample.decoding.cache.WindowCache` says. attends: its keys and values can be kept through
        transformers' attention interface instead.
    blocks: tokens see no later block of so many positions (LLaDA 2), counted from the end of the prompt; None where
        every token sees every other. It needs `visible`.
    schedule, scaled: the family's own, see :func:`quota_and_share` and :class:`Sampling`.
    """

    arguments: Arguments = plain
    shifted: bool = False
    keeps: Literal["logits_to_keep", "num_logits_to_keep"] | None = None
    visible: Callable[[Tensor, Tensor], dict[str, Any]] | None = None
    padding: int | None = None
    embeds: bool = False
    caches: bool = False
    attends: bool = False
    blocks: int | None = None
    schedule: Schedule = "even"
    scaled: bool = False

    def positions(self, mask: Tensor, tokens: Tensor | None) -> Tensor:
        """int64 [B, L] by the attention mask and, where there are no embeddings instead, the tokens."""
        if self.padding is None:
            return positions_of(mask)
        if tokens is not None:
            mask = mask * (tokens != self.padding)
        return mask.long().cumsum(-1) * mask + self.padding

    @property
    def shadows(self) -> bool:
        """Whether a forward can look at tokens by shadows: mask tokens in the same row, see :class:`Checking`.

        Where logits are shifted a token's own position says nothing of it.
        """
        return self.visible is not None and not self.shifted


LLADA = Adapter(where_padded, embeds=True)
DREAM = Adapter(dream, shifted=True, visible=masked, embeds=True, schedule="dream", scaled=True)
BUNDLED = Adapter(windowed, keeps="logits_to_keep", visible=masked, embeds=True, caches=True)
FAMILIES = {"llada": LLADA, "Dream": DREAM, "fastsample_masked_diffusion": BUNDLED}
"""By `config.model_type`."""


_SUMMED = {"esm"}
"""Models of transformers that multiply by the attention mask too, so that it cannot say who sees whom."""


def adapter_of(model: Any) -> Adapter:
    """The adapter of a model: its family's, or what the parameters of its forward say; plain for another callable.

    Raises ValueError for a causal model of transformers, whose tokens do not see what follows.
    """
    if not isinstance(model, nn.Module):
        return Adapter()
    parameters = inspect.signature(model.forward).parameters
    kept: list[Literal["logits_to_keep", "num_logits_to_keep"]] = ["logits_to_keep", "num_logits_to_keep"]
    keeps = next((name for name in kept if name in parameters), None)
    from transformers import PreTrainedModel  # seconds to load, and a plain callable does without

    if not isinstance(model, PreTrainedModel):
        return Adapter(keeps=keeps, embeds="inputs_embeds" in parameters)
    _refuse_causal(model)
    own = FAMILIES.get(model.config.model_type)
    if own is not None:
        return own if own.keeps else replace(own, keeps=keeps)
    positions = "position_ids" in parameters
    square = positions and model._supports_attention_backend and not _slides(model.config)
    square = square and model.config.model_type not in _SUMMED
    padding = _padding_of(model) if positions else None
    return Adapter(
        with_positions if positions and padding is None else where_padded,
        keeps=keeps,
        visible=functools.partial(added, dtype=model.dtype) if square else None,
        padding=padding,
        embeds="inputs_embeds" in parameters,
        attends=square,
    )


def mask_token_of(model: Any, tokenizer: Any = None) -> int | None:
    """The mask token of a model's config, else of its tokenizer; None where neither has one."""
    own = getattr(getattr(model, "config", None), "mask_token_id", None)
    token: int | None = getattr(tokenizer, "mask_token_id", None) if own is None else own
    return token


def _padding_of(model: nn.Module) -> int | None:
    """The padding token in a model's table of positions; None where it has none."""
    tables = [
        module.padding_idx
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and path.endswith("position_embeddings")
    ]
    return next(iter(tables), None)


def _slides(config: Any) -> bool:
    """Whether some layers see a window alone, for which one mask for all is wrong."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or getattr(config, "sliding_window", None) is not None


def context_of(model: Any, adapter: Adapter) -> int | None:
    """The longest text that a model of transformers takes, by its config; None where that does not say."""
    config = getattr(model, "config", None)
    names = ("max_position_embeddings", "max_sequence_length", "n_positions")
    lengths = [getattr(config, name, None) for name in names]
    unused = 0 if adapter.padding is None else adapter.padding + 1
    return next((length - unused for length in lengths if isinstance(length, int) and length > 0), None)


def _refuse_causal(model: Any) -> None:
    from transformers.models.auto import modeling_auto as known  # as above

    name, config = type(model).__name__, model.config
    masked = name in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    causal = (
        name in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and not masked and getattr(config, "is_causal", True)
    )
    if causal or getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model = {name} is causal: give a masked (bidirectional) model, or decode it by fastsample.jacobi_decode"
        )
