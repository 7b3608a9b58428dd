"""The bundled causal language models with their tokenizer, offline: one that adds, and its consistency model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

MODELS = ("teacher", "consistency")


def load_causal_model(
    name: str = "consistency", dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A bundled causal model in evaluation mode and its tokenizer, offline; float32 when no dtype is given.

    `name` is "teacher", or "consistency": the same model trained on for Jacobi decoding. ValueError for another.
    """
    if name not in MODELS:
        raise ValueError(f"name = {name!r}: no bundled causal model, use one of {', '.join(MODELS)}")
    folder = Path(__file__).parent / name
    model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)
