"""The bundled masked diffusion language model with its tokenizer, offline; known to transformers' Auto classes."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from fastsample.demo.language.model import MaskedDiffusionConfig, MaskedDiffusionLM

AutoConfig.register(MaskedDiffusionConfig.model_type, MaskedDiffusionConfig, exist_ok=True)
AutoModel.register(MaskedDiffusionConfig, MaskedDiffusionLM, exist_ok=True)
AutoModelForMaskedLM.register(MaskedDiffusionConfig, MaskedDiffusionLM, exist_ok=True)


def model_path() -> Path:
    """The transformers folder of the bundled model."""
    return Path(__file__).parent


def load_language_model(
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu", *, folder: str | Path | None = None
) -> tuple[MaskedDiffusionLM, PreTrainedTokenizerFast]:
    """The bundled model in evaluation mode and its tokenizer, offline; float32 when no dtype is given.

    folder: another that `scripts/train_language.py` wrote.
    """
    source = model_path() if folder is None else folder
    model = MaskedDiffusionLM.from_pretrained(source, dtype=dtype or torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    return model.to(device).eval(), tokenizer
