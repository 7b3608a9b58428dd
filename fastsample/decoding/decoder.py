"""The engine of masked diffusion decoding: each row of a batch advances, and leaves it when finished, on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastsample.decoding.adapters import Adapter
from fastsample.decoding.checks import Checks
from fastsample.decoding.commit import Checking, Probing, Progress, Remembering
from fastsample.decoding.commit.rule import Memory
from fastsample.decoding.denoiser import Answer, Denoiser
from fastsample.decoding.ledger import DecodingLedger
from fastsample.decoding.refinement import Latents
from fastsample.decoding.rows import Commit, Rows, Stream, Window
from fastsample.decoding.schedule import quota_and_share
from fastsample.decoding.settings import Settings
from fastsample.decoding.statistics import Statistics, probability_of, statistics_of, uniforms


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
        self._denoiser = Denoiser(
            model, adapter, full, self._prompt, settings.mask_token_id, settings.guidance_scale,
            given=response != settings.mask_token_id,
        )  # fmt: skip
        self._stops = torch.tensor(settings.eos_token_ids, dtype=torch.int64, device=device)
        self._latents = None
        if settings.refinement is not None:
            self._latents = Latents(settings.refinement, rows, *self._denoiser.embedding_table())
        self._checks = Checks(settings.rule, response) if isinstance(settings.rule, Checking) else None
        self._memory: Memory | None = None
        self._open = [0] * rows  # undecided positions of each row's block, on the host
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rows = Rows(
            tokens=torch.cat([prompt, response], 1), masked=response == settings.mask_token_id,
            committed_at=torch.zeros_like(response), confidence=torch.ones(response.shape, device=device),
            block=zeros - 1, step=zeros, total=zeros, age=zeros, seed=seed,
        )  # fmt: skip
        self.sequences = self._rows.tokens.clone()
        """int64 [B, P + G]: final where a row is finished."""
        self.ledger = DecodingLedger(
            rows, committed_at=torch.zeros_like(response), row_forwards=[0] * rows,
            confidence=torch.ones(response.shape, device=device),
        )  # fmt: skip
        self.forwards = 0
        self._active = list(range(rows))
        self._advance()
        block, self._open = torch.stack([self._rows.block, self._rows.total]).tolist()
        self._settle(block, whole=True)

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
        rows, read, settings = self._rows, self._window(), self._settings
        logits, support = self._forward(read)
        self.forwards += 1
        columns = slice(read.first, read.last)
        draw = torch.full((1,), self.forwards, device=logits.device)
        seed, masked = rows.seed[:, columns], rows.masked[:, columns]
        eligible = masked & self._own()[:, columns]
        memory: Memory = ()
        logits = self._penalised(logits, rows.tokens, slice(None))
        if isinstance(settings.rule, Remembering):
            logits, memory = self._remember(settings.rule, logits, eligible, columns)
        statistics = statistics_of(
            logits,
            settings.sampling,
            seed=seed,
            draw=draw,
            needs=settings.rule.needs,
            excluded=settings.mask_token_id,
        )
        uniform = uniforms(seed, draw) if settings.rule.random else None
        chosen = self._choose(logits, statistics, read, eligible, uniform, memory)
        broken = (masked & statistics.confidence.isnan()).any(-1)
        back = self._take_back(support, chosen, columns)
        self._write(chosen, statistics, columns)
        if self._checks is not None:
            self._checks.note(chosen, statistics.confidence, columns)
            self._reopen(back)
        self._end()
        self._advance()
        look = torch.zeros_like(rows.block)
        if self._checks is not None:
            look = self._checks.look(rows.committed_at, self.forwards, self._own())
        left = (rows.masked & self._own()).sum(-1)
        report = torch.stack([rows.block, broken.long(), (rows.age == 0).long(), look, left], -1)
        if self._stream is not None:
            written = torch.where(chosen, statistics.token, -1).masked_fill(back[:, columns], settings.mask_token_id)
            report = torch.cat([report, written], -1)
        self._report(report.tolist(), read.first)

    def stop(self) -> None:
        """End all rows as they are."""
        self._settle([self._settings.blocks] * len(self._active), whole=False)

    def finish(self, lengths: Mapping[int, int]) -> None:
        """End rows of the batch, {row: tokens of the response that are kept}; what follows becomes padding."""
        rows, blocks = self._rows, list(self._blocks)
        for row, length in lengths.items():
            place = self._active.index(row)
            rows.tokens[place, self._prompt + length :] = self._settings.pad_token_id
            rows.masked[place, length:] = False
            rows.committed_at[place, length:] = 0
            rows.confidence[place, length:] = 1
            blocks[place] = self._settings.blocks
        self._settle(blocks, self._whole)

    @property
    def active(self) -> list[int]:
        """The rows of the batch that are not finished."""
        return list(self._active)

    def _window(self) -> Window:
        """What is evaluated and read: the blocks that rows are in, or more where the rule or the cache needs it."""
        settings, prompt, width = self._settings, self._prompt, self._settings.block_length
        first, last = min(self._blocks) * width, min((max(self._blocks) + 1) * width, settings.gen_length)
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
        return Window(first, last, evaluated, write, readable)

    def _forward(self, read: Window) -> tuple[Tensor, Tensor | None]:
        """Logits [A, read, V]; and where drafts are looked at, the probability of each [A, G], inf elsewhere."""
        rows, checks, first, last = self._rows, self._checks, read.first, read.last
        if checks is None:
            return self._count(
                self._denoiser(self._inputs(), first, last, window=read.evaluated, write=read.write)
            ).logits, None
        mask = self._settings.mask_token_id
        if checks.rule.form == "shadows":
            shadows = checks.shadows(self._prompt)
            answer = self._count(self._denoiser(rows.tokens, first, last, shadows=shadows))
            if shadows is None or answer.shadows is None:
                return answer.logits, None
            drafts = rows.tokens.gather(1, shadows.at)
            return answer.logits, checks.support_of_shadows(probability_of(answer.shadows, drafts, excluded=mask))
        hidden = checks.hidden(rows.tokens, self._prompt, mask)
        if hidden is None:
            return self._count(self._denoiser(rows.tokens, first, last)).logits, None
        index, text = hidden
        every = torch.arange(len(rows.tokens), device=index.device)
        both = torch.cat([rows.tokens, text])
        logits = self._count(self._denoiser(both, first, last, rows=torch.cat([every, index]))).logits
        drafts = rows.tokens[index, self._prompt + first : self._prompt + last]
        probability = probability_of(logits[len(every) :], drafts, excluded=mask)
        return logits[: len(every)], checks.support_of_rows(index, probability, first)

    def _count(self, answer: Answer) -> Answer:
        self.ledger.positions += answer.evaluated
        self.ledger.rows += self._denoiser.branches * len(answer.logits)
        return answer

    def _inputs(self) -> Tensor:
        """Tokens [A, L], or embeddings [A, L, H] with the latents of undecided ones."""
        rows = self._rows
        if self._latents is None:
            return rows.tokens
        place, undecided = self._block_positions()
        return self._latents.embed(self._denoiser.embed(rows.tokens), self._prompt + place, undecided)

    def _remember(self, rule: Remembering, logits: Tensor, eligible: Tensor, columns: slice) -> tuple[Tensor, Memory]:
        """The logits that the rule reads, and its memory of the columns."""
        if self._memory is None:
            self._memory = rule.begin(logits, self._settings.gen_length)
        here = tuple(each[:, columns] for each in self._memory)
        logits, memory = rule.remember(logits, here, eligible, self._settings.mask_token_id)
        for kept, new in zip(here, memory, strict=True):
            kept.copy_(new)
        return logits, memory

    def _choose(
        self, logits: Tensor, statistics: Statistics, read: Window, eligible: Tensor, uniform: Tensor | None,
        memory: Memory,
    ) -> Tensor:  # fmt: skip
        """Positions to commit, bool [A, read]."""
        settings, rows = self._settings, self._rows
        masked, text = rows.masked[:, read.first : read.last], rows.tokens[:, self._prompt :]
        steps = settings.steps_per_block
        quota, share = quota_and_share(settings.schedule, rows.total, eligible.sum(-1), rows.step, steps)
        taken = rows.step >= settings.longest - 1
        if self._latents is not None:
            place, undecided = self._block_positions()
            own = (place - read.first)[..., None].expand(-1, -1, logits.shape[-1])
            block = logits.gather(1, own)
            block[..., settings.mask_token_id] = -math.inf  # never predicted
            settled = self._latents.observe(block, undecided)
            eligible = eligible & self._latents.committing[:, None]
            taken = taken | settled
        progress = Progress(
            step=rows.block * steps + rows.step.clamp(max=steps - 1), steps=settings.steps, quota=quota, share=share,
            first=read.first, length=settings.gen_length, tokens=text[:, read.first : read.last],
            readable=read.readable, uniform=uniform, block_step=rows.step, memory=memory,
            probe=_Probe(self, logits, read) if isinstance(settings.rule, Probing) else None,
        )  # fmt: skip
        return (masked & settings.rule.commit(statistics, masked, eligible, progress)) | (eligible & taken[:, None])

    def _predicted(self, logits: Tensor) -> Tensor:
        """The logits without the mask token, which is never predicted."""
        mask = torch.tensor([self._settings.mask_token_id]).to(logits.device, non_blocking=True)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).index_fill(-1, mask, -math.inf)

    def _probe(self, tokens: Tensor, rows: list[int], read: Window) -> Tensor:
        """Logits [R, read, V] of a forward of the rows `rows`, were their text `tokens` [R, read]."""
        index = self._on_device(rows)
        text = self._rows.tokens[index]
        text[:, self._prompt + read.first : self._prompt + read.last] = tokens
        self.ledger.forward_calls += 1
        for row in rows:
            self.ledger.row_forwards[self._active[row]] += 1
        logits = self._count(self._denoiser(text, read.first, read.last, rows=index)).logits
        return self._predicted(self._penalised(logits, text, index))

    def _penalised(self, logits: Tensor, tokens: Tensor, rows: slice | Tensor) -> Tensor:
        """The logits with those of tokens in sight made smaller, by `tokens` [B, L] of the rows `rows`."""
        penalty = self._settings.repetition_penalty
        if penalty == 1:
            return logits
        visible = (self._denoiser.attention[rows] > 0) & (tokens != self._settings.mask_token_id)
        seen = torch.zeros(len(tokens), logits.shape[-1] + 1, dtype=torch.bool, device=tokens.device)
        seen = seen.scatter(1, torch.where(visible, tokens, logits.shape[-1]), True)[:, None, :-1]
        return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)

    def _take_back(self, support: Tensor | None, chosen: Tensor, columns: slice) -> Tensor:
        """bool [A, G]: drafts that go back to masks."""
        whole = torch.zeros_like(self._rows.masked)
        if self._checks is None:
            return whole
        whole[:, columns] = chosen
        if support is not None:
            rows = self._rows
            looked = (support < torch.inf) & (rows.committed_at > 0)
            rows.confidence = torch.where(looked, support.to(rows.confidence), rows.confidence)
        return self._checks.revoked(support, whole, self._rows.committed_at, self.forwards, self._own())

    def _reopen(self, back: Tensor) -> None:
        rows = self._rows
        rows.tokens[:, self._prompt :].masked_fill_(back, self._settings.mask_token_id)
        rows.committed_at.masked_fill_(back, 0)
        rows.confidence.masked_fill_(back, 1)
        rows.masked |= back

    def _write(self, chosen: Tensor, statistics: Statistics, columns: slice) -> None:
        rows, confidence = self._rows, statistics.confidence.to(self._rows.confidence)
        text = rows.tokens[:, self._prompt :]
        values = ((text, statistics.token), (rows.committed_at, self.forwards), (rows.confidence, confidence))
        for kept, new in values:
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
        rows.confidence.masked_fill_(after, 1)
        rows.masked &= ~after

    def _advance(self) -> None:
        """Move each row to its first block with something undecided."""
        rows, settings = self._rows, self._settings
        short = settings.blocks * settings.block_length - settings.gen_length
        left = torch.nn.functional.pad(rows.masked, (0, short))
        left = left.reshape(-1, settings.blocks, settings.block_length).sum(-1)
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

        `report` per row: its block, whether its logits were broken, whether its cache is due, how many drafts are
        looked at next, what its block has undecided, tokens (-1: none).
        """
        ledger = self.ledger
        ledger.forward_calls += 1
        commits = []
        for row, (_, broken, _, _, _, *tokens) in zip(self._active, report, strict=True):
            if broken:
                raise RuntimeError(f"the logits of row {row} are not finite at forward {self.forwards}")
            ledger.row_forwards[row] += 1
            commits += [Commit(row, first + i, token, self.forwards) for i, token in enumerate(tokens) if token >= 0]
        if self._stream is not None:
            self._stream(commits)
        blocks = [block for block, *_ in report]
        unfinished = [fresh for block, _, fresh, *_ in report if block < self._settings.blocks]
        self._open = [left for *_, left in (line[:5] for line in report)]
        if self._checks is not None:
            self._checks.counts = [look for _, _, _, look, *_ in report]
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
        self.ledger.confidence.index_copy_(0, places, rows.confidence)
        kept = [place for place, block in enumerate(blocks) if block < self._settings.blocks]
        self._active = [self._active[place] for place in kept]
        self._open = [self._open[place] for place in kept]
        index = self._on_device(kept)
        self._rows = rows.take(index)
        self._denoiser.take(index)
        if self._latents is not None:
            self._latents.take(index)
        if self._checks is not None:
            self._checks.take(index, kept)
        if self._memory is not None:
            self._memory = tuple(each[index] for each in self._memory)

    def _own(self) -> Tensor:
        """bool [A, G]: the positions of each row's block."""
        column = torch.arange(self._settings.gen_length, device=self._rows.block.device)
        return column // self._settings.block_length == self._rows.block[:, None]

    def _block_positions(self) -> tuple[Tensor, Tensor]:
        """int64 and bool [A, W]: response positions of each row's block, and which of them are undecided.

        A last block that is shorter repeats its last position as decided.
        """
        rows, width, last = self._rows, self._settings.block_length, self._settings.gen_length - 1
        place = rows.block[:, None] * width + torch.arange(width, device=rows.block.device)
        held = place.clamp(max=last)
        return held, rows.masked.gather(1, held) & (place <= last)

    def _on_device(self, rows: list[int]) -> Tensor:
        # nothing waits for this copy
        return torch.tensor(rows, dtype=torch.int64).to(self._rows.block.device, non_blocking=True)


class _Probe:
    """Further forwards of a step, for rules that try texts out; the ledger counts them."""

    def __init__(self, decoder: Decoder, logits: Tensor, read: Window) -> None:
        self._decoder, self._read = decoder, read
        self.logits = decoder._predicted(logits)
        self.counts = list(decoder._open)

    def __call__(self, tokens: Tensor, rows: list[int]) -> Tensor:
        return self._decoder._probe(tokens, rows, self._read)
