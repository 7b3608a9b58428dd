"""Prompts of a pipeline as a left-padded batch of tokens, and texts from a batch of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Message = dict[str, str]


def encode(tokenizer: Any, prompts: Sequence[str], *, chat: bool) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask, int64 [B, P], of texts; with `chat`, of user messages, if there is a template.

    Raises ValueError for no prompts.
    """
    if chat and getattr(tokenizer, "chat_template", None):
        return encode_chats(tokenizer, [[{"role": "user", "content": prompt}] for prompt in prompts])
    rows, begin = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts], tokenizer.bos_token_id
    # a prompt that a chat template has made begins by its own
    rows = [row[1:] if begin is not None and row[:2] == [begin, begin] else row for row in rows]
    return left_pad(rows, _filler(tokenizer))


def encode_chats(tokenizer: Any, chats: Sequence[Sequence[Message]]) -> tuple[Tensor, Tensor]:
    """As :func:`encode`, for lists of messages, by the tokenizer's chat template up to where the answer begins."""
    texts = [tokenizer.apply_chat_template(list(chat), add_generation_prompt=True, tokenize=False) for chat in chats]
    return left_pad([tokens_of(tokenizer, text) for text in texts], _filler(tokenizer))


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text without special tokens but for one BOS, where the tokenizer begins texts by one.

    A text that has it already, as chat templates write it, gets no second one.
    """
    ids, begin = list(tokenizer(text, add_special_tokens=False)["input_ids"]), tokenizer.bos_token_id
    if begin is None or ids[:1] == [begin] or list(tokenizer("")["input_ids"][:1]) != [begin]:
        return ids
    return [begin, *ids]


def left_pad(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask [B, longest]."""
    if not rows:
        raise ValueError("prompt = []: give at least one")
    longest = max(map(len, rows))
    tokens = torch.tensor([[filler] * (longest - len(row)) + list(row) for row in rows], dtype=torch.int64)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], dtype=torch.int64)
    return tokens.reshape(len(rows), longest), mask.reshape(len(rows), longest)


def texts_of(tokenizer: Any, sequences: Tensor, ends: Sequence[int]) -> list[str]:
    """Texts of responses [B, G] up to their first end token, without special tokens."""
    kept = []
    for row in sequences.tolist():
        stops = [place for place, token in enumerate(row) if token in ends]
        kept.append(row[: stops[0]] if stops else row)
    decoded: list[str] = tokenizer.batch_decode(kept, skip_special_tokens=True)
    return decoded


def _filler(tokenizer: Any) -> int:
    """The token id that fills the padding, which no token sees."""
    own: int | None = tokenizer.pad_token_id
    return 0 if own is None else own
