"""One forward of a masked language model: logits of a window of the response, guided, from tokens or embeddings."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter
from fastsample.decoding.attention import block_causal, with_shadows
from fastsample.decoding.cache import WindowCache
from fastsample.decoding.checks import Shadows


class Answer(NamedTuple):
    """Of one forward: logits [B, W, V] of the window that was asked for, those of its shadows, tokens evaluated."""

    logits: Tensor
    shadows: Tensor | None
    evaluated: int


class Denoiser:
    """Calls `model` as its `adapter` says and gives logits at response positions, views of what the model returns.

    guidance w: (1 + w) logits - w logits with the prompt, and what else is `given`, masked (LLaDA, arXiv:2502.09992);
    both in one batch of twice the rows. Who reads the logits leaves out the mask token, which is never predicted.
    """

    def __init__(
        self,
        model: Any,
        adapter: Adapter,
        attention_mask: Tensor,
        prompt: int,
        mask_token_id: int,
        guidance: float,
        given: Tensor | None = None,
    ) -> None:
        """`attention_mask` [B, L] of the whole sequences, of which the first `prompt` positions are the prompt.

        `given`: bool [B, L - prompt], the tokens of the response that were not the model's; by default none.
        """
        self._model, self._adapter, self._prompt, self._guidance = model, adapter, prompt, guidance
        self._attention, self._padded = attention_mask, not bool(attention_mask.all())
        self._mask_token = torch.tensor([mask_token_id], device=attention_mask.device)
        self._cache = WindowCache()
        self._known = torch.arange(attention_mask.shape[1], device=attention_mask.device) < prompt
        self._known = self._known.expand_as(attention_mask)
        if given is not None:
            self._known = torch.cat([self._known[:, :prompt], given], 1)

    @property
    def attention(self) -> Tensor:
        """int64 [B, L]: 0 for padding."""
        return self._attention

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
        self,
        inputs: Tensor,
        first: int,
        last: int,
        *,
        window: slice | None = None,
        write: Tensor | None = None,
        shadows: Shadows | None = None,
        rows: Tensor | None = None,
    ) -> Answer:
        """Logits [B, last - first, V] at response positions first .. last - 1.

        inputs: tokens [B, L] or embeddings [B, L, H]. window: the positions that are evaluated, with a key-value
        cache of which `write` (bool [B, window]) is replaced; None is all of them, without a cache. shadows: further
        mask tokens behind `inputs`, for tokens alone. rows: int64 [B], of which row each input is; None is in order.
        """
        evaluated = slice(0, inputs.shape[1]) if window is None else window
        mask, known = self._attention, self._known
        if rows is not None:
            mask, known = mask[rows], known[rows]
        if self._guidance:
            inputs, mask = self._branched(inputs, known), torch.cat([mask, mask])
        positions = self._adapter.positions(mask, inputs if inputs.ndim == 2 else None)
        extra = 0 if shadows is None else shadows.at.shape[1]
        if shadows is not None:
            inputs = torch.cat([inputs, self._mask_token.expand(len(inputs), extra)], 1)
        kept: AbstractContextManager[None] = nullcontext()
        if write is not None:
            self._cache.open(evaluated.start, write.repeat(self.branches, 1))
            if not self._adapter.caches:
                from fastsample.decoding.interface import windows  # seconds to load, and only for caches

                kept = windows(self._model, self._cache)
        call = self._arguments(mask, positions, evaluated, shadows, cached=write is not None)
        offset = self._prompt - self._adapter.shifted - evaluated.start
        if window is not None:
            inputs = inputs[:, evaluated]
        with kept:
            logits, behind = self._logits_at(inputs, offset + first, offset + last, extra, call)
        if self._guidance:
            logits = self._guided(logits)
            behind = self._guided(behind)
        return Answer(logits, behind if extra else None, inputs.shape[0] * inputs.shape[1])

    def _arguments(
        self, mask: Tensor, positions: Tensor, evaluated: slice, shadows: Shadows | None, *, cached: bool
    ) -> dict[str, Any]:
        adapter, blocks = self._adapter, self._adapter.blocks
        keep: dict[str, Any] = {"past_key_values": self._cache} if cached and adapter.caches else {}
        if shadows is None and blocks is None and (adapter.caches or not cached):
            if adapter.padding is not None:
                keep["position_ids"] = positions[:, evaluated]
            return {**adapter.arguments(mask, self._padded, evaluated), **keep}
        assert adapter.visible is not None  # Settings asks for it
        if blocks is None:
            visible = mask[:, None, None].bool().expand(-1, 1, mask.shape[1], -1)
        else:
            visible = block_causal(mask, self._prompt, blocks)
        if shadows is None:  # of a window of the text, to all of it
            return {**adapter.visible(visible[:, :, evaluated], positions[:, evaluated]), **keep}
        at = shadows.at.repeat(self.branches, 1)
        positions = torch.cat([positions, positions.gather(1, at)], 1)
        return adapter.visible(with_shadows(visible, at, mutual=shadows.mutual), positions)

    def _logits_at(
        self, inputs: Tensor, first: int, last: int, extra: int, call: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """The logits from position `first` to `last`, and those of the `extra` last tokens: views.

        No others are computed, if the model allows it. Without a prompt, shifted logits have none before the first,
        which then stands for it.
        """
        lowest, keeps, total = max(first, 0), self._adapter.keeps, inputs.shape[1]
        if keeps == "logits_to_keep":
            kept = [*range(lowest, max(last, 1)), *range(total - extra, total)]
            call[keeps] = torch.tensor(kept).to(inputs.device, non_blocking=True)
        elif keeps == "num_logits_to_keep":
            call[keeps] = total - lowest
        output = self._model(inputs, **call) if inputs.ndim == 2 else self._model(inputs_embeds=inputs, **call)
        logits: Tensor = output.logits
        behind = logits[:, logits.shape[1] - extra :]
        if not keeps:
            logits = logits[:, lowest:]
        logits = logits[:, : last - lowest] if first >= 0 else torch.cat([logits[:, :1], logits[:, :last]], 1)
        return logits, behind

    def _guided(self, logits: Tensor) -> Tensor:
        given, blank = logits.chunk(2)
        return blank + (1 + self._guidance) * (given - blank)

    def take(self, rows: Tensor) -> None:
        """Keep only these rows of the batch."""
        count = len(self._attention)
        self._attention, self._known = self._attention[rows], self._known[rows]
        self._cache.take(torch.cat([rows + branch * count for branch in range(self.branches)]))

    def _branched(self, inputs: Tensor, known: Tensor) -> Tensor:
        """The inputs, and the inputs with what is known masked."""
        blank = self._mask_token if inputs.ndim == 2 else self.embed(self._mask_token)
        hidden = known if inputs.ndim == 2 else known[..., None]
        return torch.cat([inputs, torch.where(hidden, blank, inputs)])
