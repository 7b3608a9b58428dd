"""Tiny masked language models of transformers in float64, with weights wide enough that texts vary."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from fastsample.demo.language.model import MaskedDiffusionConfig, MaskedDiffusionLM

VOCABULARY, MASK = 24, 23


def widened(model: Any, seed: int) -> Any:
    """Matrices of standard deviation 0.6 over the square root of their inputs, embeddings of 1."""
    draw = torch.Generator().manual_seed(seed)
    model = model.double().eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            width = 1.0 if "embed" in name or "positions" in name else weight.shape[1] ** -0.5
            weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64) * width * 1.5)
    return model


def bundled_kind(seed: int = 0) -> MaskedDiffusionLM:
    config = MaskedDiffusionConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, mask_token_id=MASK,
    )  # fmt: skip
    model: MaskedDiffusionLM = widened(MaskedDiffusionLM(config), seed)
    return model


def bert(seed: int = 0) -> Any:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    return widened(BertForMaskedLM(config), seed)


def modern_bert(seed: int = 0) -> Any:
    config = ModernBertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return widened(ModernBertForMaskedLM(config), seed)


def roberta(seed: int = 0) -> Any:
    """Positions are numbered from 3, and skip the token 2; 61 of them can be used."""
    config = RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=2, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return widened(RobertaForMaskedLM(config), seed)


def albert(seed: int = 0) -> Any:
    """One layer's weights, used twice."""
    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    return widened(AlbertForMaskedLM(config), seed + 1)
