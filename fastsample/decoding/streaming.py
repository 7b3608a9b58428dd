"""Texts while they are written: what is final of each row, where it stops, and its pieces for a streamer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fastsample.decoding.rows import Commit


class Transcript:
    """The responses of a run so far, from its commits; on the host."""

    def __init__(self, responses: list[list[int]], mask_token_id: int, ends: Sequence[int], block: int) -> None:
        """`responses` hold the mask token where nothing is given.

        block: tokens are final when so many in a row are decided, counted from the first; 1 where none is taken back.
        """
        self._rows, self._mask, self._ends, self._block = responses, mask_token_id, set(ends), block

    def take(self, commits: Sequence[Commit]) -> int:
        """Take what a forward committed; how many more tokens are decided now."""
        gained = 0
        for commit in commits:
            self._rows[commit.row][commit.position] = commit.token
            gained += 1 if commit.token != self._mask else -1
        return gained

    def final(self, row: int) -> list[int]:
        """The first tokens of the row that no longer change, up to its end token."""
        tokens = self._rows[row]
        decided = next((place for place, token in enumerate(tokens) if token == self._mask), len(tokens))
        if decided < len(tokens):
            decided -= decided % self._block
        return next((tokens[:place] for place in range(decided) if tokens[place] in self._ends), tokens[:decided])


class Stops:
    """Strings at which texts stop; a text is cut before the first of them."""

    def __init__(self, strings: Sequence[str], tokenizer: Any) -> None:
        self._strings, self._tokenizer = tuple(strings), tokenizer

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def cut(self, text: str) -> str:
        """The text before the first stop."""
        return text[: min((at for at in map(text.find, self._strings) if at >= 0), default=len(text))]

    def length(self, tokens: Sequence[int]) -> int | None:
        """How many tokens it takes to write the first stop; None where there is none."""
        if not self._strings or self.cut(whole := self.decode(tokens)) == whole:
            return None
        return next(count for count in range(1, len(tokens) + 1) if self._stops(self.decode(tokens[:count])))

    def safe(self, text: str) -> int:
        """How many characters of an unfinished text no stop can take away."""
        longest = max(map(len, self._strings), default=0)
        for begin in range(max(len(text) - longest + 1, 0), len(text)):
            if any(stop.startswith(text[begin:]) for stop in self._strings):
                return begin
        return len(text)

    def _stops(self, text: str) -> bool:
        return any(stop in text for stop in self._strings)


class Deltas:
    """Hands final tokens to a streamer of transformers (`put`, `end`) in their order, none beyond a stop."""

    def __init__(self, streamer: Any, stops: Stops, prompt: torch.Tensor) -> None:
        """`prompt` int64 [1, P] goes first, as `generate` of transformers does it."""
        self._streamer, self._stops, self._sent = streamer, stops, 0
        self._prompt: torch.Tensor | None = prompt

    def put(self, tokens: Sequence[int]) -> None:
        """Take the tokens that are final so far."""
        safe, count = self._stops.safe(self._stops.cut(self._stops.decode(tokens))), self._sent
        while count < len(tokens) and len(self._stops.decode(tokens[: count + 1])) <= safe:
            count += 1
        self._send(tokens[self._sent : count])
        self._sent = count

    def end(self, tokens: Sequence[int], tokenizer: Any) -> None:
        """The rest of the text: where a stop begins within a token, what stands before it is tokenized anew."""
        text, count = self._stops.cut(self._stops.decode(tokens)), self._sent
        while count < len(tokens) and text.startswith(self._stops.decode(tokens[: count + 1])):
            count += 1
        rest = text[len(self._stops.decode(tokens[:count])) :]
        self._send(tokens[self._sent : count])
        self._send(tokenizer(rest, add_special_tokens=False)["input_ids"] if rest else [])
        self.close()

    def close(self) -> None:
        """Tell the streamer that nothing more comes."""
        self._streamer.end()

    def _send(self, tokens: Sequence[int]) -> None:
        if self._prompt is not None:
            self._streamer.put(self._prompt.cpu())
            self._prompt = None
        if tokens:
            self._streamer.put(torch.tensor(list(tokens), dtype=torch.int64))
