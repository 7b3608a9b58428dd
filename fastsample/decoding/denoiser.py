"""One forward of a masked language model: logits of a window of the response, guided, from tokens or embeddings."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter
from fastsample.decoding.cache import WindowCache


class Denoiser:
    """Calls `model` as its `adapter` says and gives logits at response positions.

    guidance w: (1 + w) logits - w logits given the prompt masked (LLaDA, arXiv:2502.09992), both in one batch of
    twice the rows. The mask token is never predicted: its logit is -inf.
    """

    def __init__(
        self, model: Any, adapter: Adapter, attention_mask: Tensor, prompt: int, mask_token_id: int, guidance: float
    ) -> None:
        """`attention_mask` [B, L] of the whole sequences, of which the first `prompt` positions are given."""
        self._model, self._adapter, self._prompt, self._guidance = model, adapter, prompt, guidance
        self._attention, self._padded = attention_mask, not bool(attention_mask.all())
        self._mask_token = torch.tensor([mask_token_id], device=attention_mask.device)
        self._cache = WindowCache()

    @property
    def branches(self) -> int:
        """Rows that one row takes in a forward: 2 with guidance."""
        return 2 if self._guidance else 1

    def embed(self, tokens: Tensor) -> Tensor:
        """The model's embeddings of `tokens`."""
        embedded: Tensor = self._model.get_input_embeddings()(tokens)
        return embedded

    @torch.no_grad()
    def embedding_table(self) -> tuple[Tensor, Tensor]:
        """Embeddings of the whole vocabulary [V, H], and the mask token's [H]."""
        layer = self._model.get_input_embeddings()
        size = layer.weight.shape[0]
        # other classes scale what they look up
        plain = type(layer) is torch.nn.Embedding
        table = layer.weight if plain else layer(torch.arange(size, device=self._mask_token.device))
        return table, table[self._mask_token][0]

    def __call__(
        self, inputs: Tensor, first: int, last: int, *, window: slice | None = None, write: Tensor | None = None
    ) -> Tensor:
        """Logits [B, last - first, V] at response positions first .. last - 1.

        inputs: tokens [B, L] or embeddings [B, L, H]. window: the positions that are evaluated, with a key-value
        cache of which `write` (bool [B, window]) is replaced; None is all of them, without a cache.
        """
        evaluated = slice(0, inputs.shape[1]) if window is None else window
        mask = self._attention
        if self._guidance:
            inputs, mask = self._branched(inputs), torch.cat([mask, mask])
        call = self._adapter.arguments(mask, self._padded, evaluated)
        if write is not None:
            self._cache.open(evaluated.start, write.repeat(self.branches, 1))
            call["past_key_values"] = self._cache
        offset = self._prompt - self._adapter.shifted - evaluated.start
        # without a prompt, shifted logits have none before the first
        rows = torch.arange(offset + first, offset + last, device=inputs.device).clamp(min=0)
        logits = self._logits_at(inputs[:, evaluated], rows, max(offset + first, 0), call)
        if self._guidance:
            given, blank = logits.chunk(2)
            logits = blank + (1 + self._guidance) * (given - blank)
        return logits.index_fill(-1, self._mask_token, -math.inf)

    def _logits_at(self, inputs: Tensor, rows: Tensor, lowest: int, call: dict[str, Any]) -> Tensor:
        """The logits at `rows`, of which `lowest` is the first; no others are computed, if the model allows it."""
        keeps = self._adapter.keeps
        kept = {"logits_to_keep": rows, "num_logits_to_keep": inputs.shape[1] - lowest}
        if keeps is not None:
            call[keeps] = kept[keeps]
        output = self._model(inputs, **call) if inputs.ndim == 2 else self._model(inputs_embeds=inputs, **call)
        logits: Tensor = output.logits
        if keeps == "num_logits_to_keep":
            rows = rows - lowest
        return logits if keeps == "logits_to_keep" else logits[:, rows]

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        count = len(self._attention)
        self._attention = self._attention[rows]
        self._cache.take(torch.cat([rows + branch * count for branch in range(self.branches)]))

    def _branched(self, inputs: Tensor) -> Tensor:
        """The inputs, and the inputs with the prompt masked."""
        blank = inputs.clone()
        blank[:, : self._prompt] = self._mask_token if inputs.ndim == 2 else self.embed(self._mask_token)
        return torch.cat([inputs, blank])
