"""A small bidirectional transformer over tokens, as a model of transformers: masked tokens in, logits of them out."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class MaskedDiffusionConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes of :class:`MaskedDiffusionLM`; `mask_token_id` is the token that stands for what is not decided."""

    model_type = "fastsample_masked_diffusion"

    def __init__(
        self,
        vocab_size: int = 16,
        hidden_size: int = 128,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        intermediate_size: int = 512,
        max_position_embeddings: int = 256,
        mask_token_id: int = 15,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size, self.max_position_embeddings = intermediate_size, max_position_embeddings
        self.mask_token_id = mask_token_id
        super().__init__(**kwargs)


class _Block(nn.Module):
    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, config.intermediate_size), nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Any = None, layer: int = 0) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class MaskedDiffusionLM(PreTrainedModel):  # type: ignore[misc]
    """Predicts every token of a text from those that are not masked (as LLaDA, arXiv:2502.09992).

    Positions are learned, the head is the embedding's transpose. Every token sees every other that the attention mask
    lets it see: 2-D [B, L] with 0 for padding, or 4-D [B, 1, L, L], boolean or additive, as block diffusion gives it.
    """

    config_class = MaskedDiffusionConfig
    base_model_prefix = "model"
    _tied_weights_keys: ClassVar[dict[str, str]] = {}

    def __init__(self, config: MaskedDiffusionConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        logits_to_keep: int | Tensor = 0,
        **_: Any,
    ) -> MaskedLMOutput:
        """Logits [B, L, V] for `input_ids` [B, L] or `inputs_embeds` [B, L, H].

        `logits_to_keep`: only the last so many positions, or those of an index tensor; 0 is all. Without
        `position_ids`, positions count from the first token that is not padding. `past_key_values`: a
        :class:`fastsample.decoding.cache.WindowCache`; then the tokens are a window of the text, with `position_ids`,
        and `attention_mask` is of the whole text.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids and inputs_embeds: give exactly one of them")
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            position_ids = torch.arange(x.shape[1], device=x.device)[None]
            if attention_mask is not None and attention_mask.ndim == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        x = x + self.positions(position_ids)
        mask = _visible(attention_mask)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, past_key_values, layer)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return MaskedLMOutput(logits=self.head(self.norm(x[:, kept])))


def _visible(attention_mask: Tensor | None) -> Tensor | None:
    """The mask as attention takes it: boolean, or added to the scores."""
    if attention_mask is None or (attention_mask.ndim == 2 and bool(attention_mask.all())):
        return None
    if attention_mask.ndim == 2:
        return attention_mask[:, None, None].bool()
    return attention_mask if attention_mask.is_floating_point() else attention_mask.bool()
