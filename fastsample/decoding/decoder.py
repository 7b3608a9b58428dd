"""The engine of masked diffusion decoding: each row of a batch advances, and leaves it when finished, on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter
from fastsample.decoding.commit import Progress
from fastsample.decoding.denoiser import Denoiser
from fastsample.decoding.ledger import DecodingLedger
from fastsample.decoding.refinement import Latents
from fastsample.decoding.schedule import quota_and_share
from fastsample.decoding.settings import Settings
from fastsample.decoding.statistics import Statistics, statistics_of, uniforms


class Commit(NamedTuple):
    """A token that a forward decided."""

    row: int
    position: int
    """In the response."""
    token: int
    forward: int
    """From 1."""


Stream = Callable[[list[Commit]], None]
"""Called after each forward with what it committed."""


@dataclass
class _Rows:
    """State of the rows that are not finished: tensors of the device, [A, ..]."""

    tokens: Tensor
    """int64 [A, P + G]: prompt and response."""
    masked: Tensor
    """bool [A, G]: what is undecided."""
    committed_at: Tensor
    """int64 [A, G]: forward of each commit, 0 elsewhere."""
    block: Tensor
    """int64 [A]: the first block with something undecided; their number where there is none."""
    step: Tensor
    """int64 [A]: steps made in that block."""
    total: Tensor
    """int64 [A]: what was undecided in it at its first step."""
    age: Tensor
    """int64 [A]: forwards since the key-value cache holds the whole row."""
    seed: Tensor
    """int64 [A, G]: of each position's random numbers."""

    def take(self, rows: Tensor) -> _Rows:
        return _Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


class _Window(NamedTuple):
    """Response positions first .. last - 1 are read; of the sequence, `evaluated` (None: all, without a cache)."""

    first: int
    last: int
    evaluated: slice | None
    write: Tensor | None
    """bool [A, evaluated]: keys and values that are replaced."""
    readable: Tensor | None
    """bool [A, read]: what is of this forward for the row itself."""


class Decoder:
    """A run with `settings` on prompts [B, P]: call :meth:`step` until :attr:`done`.

    A row that is finished takes no part in later forwards, and no row's tokens depend on the others. A step reads the
    device once, at its end: in which block each row is now.
    """

    def __init__(
        self, model: Any, adapter: Adapter, settings: Settings, prompt: Tensor, attention_mask: Tensor,
        response: Tensor, seed: Tensor, stream: Stream | None = None,
    ) -> None:  # fmt: skip
        """`response` int64 [B, G], the mask token where nothing is given; `seed` int64 [B, G]."""
        device, (rows, length) = prompt.device, response.shape
        self._settings, self._shifted, self._stream = settings, adapter.shifted, stream
        self._prompt = prompt.shape[1]
        full = torch.nn.functional.pad(attention_mask, (0, length), value=1)
        self._denoiser = Denoiser(model, adapter, full, self._prompt, settings.mask_token_id, settings.guidance_scale)
        self._stops = torch.tensor(settings.eos_token_ids, dtype=torch.int64, device=device)
        self._latents = None
        if settings.refinement is not None:
            self._latents = Latents(settings.refinement, rows, *self._denoiser.embedding_table())
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rows = _Rows(
            tokens=torch.cat([prompt, response], 1), masked=response == settings.mask_token_id,
            committed_at=torch.zeros_like(response), block=zeros - 1, step=zeros, total=zeros, age=zeros, seed=seed,
        )  # fmt: skip
        self.sequences = self._rows.tokens.clone()
        """int64 [B, P + G]: final where a row is finished."""
        self.ledger = DecodingLedger(rows, committed_at=torch.zeros_like(response), row_forwards=[0] * rows)
        self.forwards = 0
        self._active = list(range(rows))
        self._advance()
        self._settle(self._rows.block.tolist(), whole=True)

    @property
    def done(self) -> bool:
        """Whether every row is finished."""
        return not self._active

    @property
    def tokens(self) -> Tensor:
        """int64 [B, P + G]: the text so far, the mask token where it is undecided; a copy."""
        return self.sequences.index_copy(0, self._on_device(self._active), self._rows.tokens)

    @torch.no_grad()
    def step(self) -> None:
        """One forward and its commits. RuntimeError where logits are not finite."""
        rows, read = self._rows, self._window()
        logits = self._denoiser(self._inputs(), read.first, read.last, window=read.evaluated, write=read.write)
        self.forwards += 1
        columns = slice(read.first, read.last)
        draw = torch.full((1,), self.forwards, device=logits.device)
        seed = rows.seed[:, columns]
        statistics = statistics_of(logits, self._settings.sampling, seed=seed, draw=draw)
        uniform = uniforms(seed, draw) if self._settings.rule.random else None
        chosen = self._choose(logits, statistics, read, uniform)
        broken = (rows.masked[:, columns] & statistics.confidence.isnan()).any(-1)
        self._write(chosen, statistics.token, columns)
        self._end()
        self._advance()
        report = torch.stack([rows.block, broken.long(), (rows.age == 0).long()], -1)
        if self._stream is not None:
            report = torch.cat([report, torch.where(chosen, statistics.token, -1)], -1)
        self._report(report.tolist(), read.first)

    def stop(self) -> None:
        """End all rows as they are."""
        self._settle([self._settings.blocks] * len(self._active), whole=False)

    def _window(self) -> _Window:
        """What is evaluated and read: the blocks that rows are in, or more where the rule or the cache needs it."""
        settings, prompt, width = self._settings, self._prompt, self._settings.block_length
        first, last = min(self._blocks) * width, (max(self._blocks) + 1) * width
        evaluated, write, readable = None, None, None
        if settings.caching is not None:
            total = prompt + settings.gen_length
            stop = prompt + last if settings.caching.kind == "dual" else total
            # one more in front where the logits of a position are those of the one before
            start = max(prompt + first - self._shifted, 0)
            evaluated = slice(0, total) if self._whole else slice(start, stop)
            own = prompt + self._rows.block[:, None] * width
            position = torch.arange(evaluated.start, evaluated.stop, device=own.device)
            write = position >= own
            if settings.caching.kind == "dual":
                write = write & (position < own + width)
            write = write | (self._rows.age == 0)[:, None]
        if settings.rule.reads == "response":
            first, last = (0 if settings.caching is None or self._whole else first), settings.gen_length
        if evaluated is not None and write is not None:
            offset = prompt - evaluated.start
            readable = write[:, offset + first : offset + last]
        return _Window(first, last, evaluated, write, readable)

    def _inputs(self) -> Tensor:
        """Tokens [A, L], or embeddings [A, L, H] with the latents of undecided ones."""
        rows = self._rows
        if self._latents is None:
            return rows.tokens
        place = self._block_positions()
        undecided = rows.masked.gather(1, place)
        return self._latents.embed(self._denoiser.embed(rows.tokens), self._prompt + place, undecided)

    def _choose(self, logits: Tensor, statistics: Statistics, read: _Window, uniform: Tensor | None) -> Tensor:
        """Positions to commit, bool [A, read]."""
        settings, rows = self._settings, self._rows
        masked, text = rows.masked[:, read.first : read.last], rows.tokens[:, self._prompt :]
        column = torch.arange(read.first, read.last, device=masked.device)
        eligible = masked & (column // settings.block_length == rows.block[:, None])
        steps = settings.steps_per_block
        quota, share = quota_and_share(settings.schedule, rows.total, eligible.sum(-1), rows.step, steps)
        # no rule that commits one token a forward, or follows the schedule, comes so far
        taken = rows.step >= max(steps, settings.block_length) - 1
        if self._latents is not None:
            place = self._block_positions()
            own = (place - read.first)[..., None].expand(-1, -1, logits.shape[-1])
            settled = self._latents.observe(logits.gather(1, own), rows.masked.gather(1, place))
            eligible = eligible & self._latents.committing[:, None]
            taken = taken | settled
        progress = Progress(
            step=rows.block * steps + rows.step.clamp(max=steps - 1), steps=settings.steps, quota=quota, share=share,
            first=read.first, length=settings.gen_length, tokens=text[:, read.first : read.last],
            readable=read.readable, uniform=uniform,
        )  # fmt: skip
        return (masked & settings.rule.commit(statistics, masked, eligible, progress)) | (eligible & taken[:, None])

    def _write(self, chosen: Tensor, token: Tensor, columns: slice) -> None:
        rows = self._rows
        for kept, new in ((rows.tokens[:, self._prompt :], token), (rows.committed_at, self.forwards)):
            kept[:, columns] = torch.where(chosen, new, kept[:, columns])
        rows.masked[:, columns] &= ~chosen

    def _end(self) -> None:
        """End the rows in which all before an end token is decided: what follows becomes padding."""
        if not len(self._stops):
            return
        rows, text = self._rows, self._rows.tokens[:, self._prompt :]
        ends = torch.isin(text, self._stops) & (rows.masked.cumsum(-1) == 0)
        after = ends.cumsum(-1) - ends.long() > 0
        text.masked_fill_(after, self._settings.pad_token_id)
        rows.committed_at.masked_fill_(after, 0)
        rows.masked &= ~after

    def _advance(self) -> None:
        """Move each row to its first block with something undecided."""
        rows, settings = self._rows, self._settings
        left = rows.masked.reshape(-1, settings.blocks, settings.block_length).sum(-1)
        block = torch.where(left.any(-1), (left > 0).long().argmax(-1), settings.blocks)
        moved = block != rows.block
        made = 1 if self._latents is None else self._latents.committing.long()
        rows.step = (rows.step + made).masked_fill(moved, 0)
        first = left.gather(1, block.clamp(max=settings.blocks - 1)[:, None])[:, 0]
        rows.total = torch.where(moved, first, rows.total)
        rows.age = (rows.age + 1).masked_fill(moved, 0)
        if settings.caching is not None and settings.caching.refresh is not None:
            rows.age %= settings.caching.refresh
        if self._latents is not None:
            self._latents.advance(moved)
        rows.block = block

    def _report(self, report: list[list[int]], first: int) -> None:
        """Count the forward, stream its commits, and let finished rows go.

        `report` per row: its block, whether its logits were broken, whether its cache is due, tokens (-1: none).
        """
        ledger, branches = self.ledger, self._denoiser.branches
        ledger.forward_calls += 1
        ledger.rows += branches * len(self._active)
        commits = []
        for row, (_, broken, _, *tokens) in zip(self._active, report, strict=True):
            if broken:
                raise RuntimeError(f"the logits of row {row} are not finite at forward {self.forwards}")
            ledger.row_forwards[row] += 1
            commits += [Commit(row, first + i, token, self.forwards) for i, token in enumerate(tokens) if token >= 0]
        if self._stream is not None:
            self._stream(commits)
        blocks = [block for block, *_ in report]
        unfinished = [fresh for block, _, fresh, *_ in report if block < self._settings.blocks]
        self._settle(blocks, whole=any(unfinished))

    def _settle(self, blocks: list[int], whole: bool) -> None:
        """Note the block that each row is in, and remove finished rows from the batch."""
        self._whole, rows = whole, self._rows
        self._blocks = [block for block in blocks if block < self._settings.blocks]
        if len(self._blocks) == len(blocks):
            return
        places = self._on_device(self._active)
        self.sequences.index_copy_(0, places, rows.tokens)
        self.ledger.committed_at.index_copy_(0, places, rows.committed_at)
        kept = [place for place, block in enumerate(blocks) if block < self._settings.blocks]
        self._active = [self._active[place] for place in kept]
        index = self._on_device(kept)
        self._rows = rows.take(index)
        self._denoiser.take(index)
        if self._latents is not None:
            self._latents.take(index)

    def _block_positions(self) -> Tensor:
        """int64 [A, W]: response positions of each row's block."""
        width = self._settings.block_length
        return self._rows.block[:, None] * width + torch.arange(width, device=self._rows.block.device)

    def _on_device(self, rows: list[int]) -> Tensor:
        # nothing waits for this copy
        return torch.tensor(rows, dtype=torch.int64).to(self._rows.block.device, non_blocking=True)
