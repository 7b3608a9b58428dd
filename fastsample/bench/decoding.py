"""Ways to decode the bundled language model, side by side: right answers, whole texts right, forwards, seconds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastsample.bench.context import command, context_of, environment
from fastsample.bench.record import Record, Result
from fastsample.decoding import decode_masked
from fastsample.demo.language.sums import RESPONSE_LENGTH, Sum, problems
from fastsample.names.rules import Method

BATCHES = (1, 8)
"""Sequences a batch, where seconds are taken."""


@dataclass
class DecodingBench:
    """A benchmark of a masked language model on `count` problems of the test split, none of them trained on.

    All problems are decoded in batches of `batch` for what is right and how many forwards a row took, which do not
    depend on the batch; the first `timed` once more in batches of 1 and of 8, for the seconds of each batch.
    """

    model: Any
    tokenizer: Any
    record: Record
    count: int = 512
    batch: int = 64
    timed: int = 16
    seed: int = 1

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("batch", 1), ("timed", max(BATCHES))):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: give an integer of at least {least}")
        self.problems = list(itertools.islice(problems(self.seed, test=True), self.count))
        self.prompts = torch.tensor(self.tokenizer([problem.prompt for problem in self.problems]).input_ids)
        self.prompts = self.prompts.to(self.model.device)
        self._environment = environment(self.model.device)
        self._context = context_of([self.model], self.model.device, self.seed, self.count, self.timed)

    def run(self, methods: Sequence[Method]) -> Iterator[Result]:
        """Run what the record does not hold yet, yielding each result once it is on disk."""
        for method in methods:
            if self.result(method) is None:
                yield self.record.append(self._describe(method) | self._judge(method) | self._time(method))

    def result(self, method: Method) -> Result | None:
        """What the record holds of this method, with these weights and problems, on this device."""
        return self.record.results.get(self._key(method))

    def _key(self, method: Method) -> str:
        return f"{self._context} {method.label}"

    def _describe(self, method: Method) -> Result:
        return {
            "key": self._key(method),
            "method": method.label,
            "settings": {name: repr(value) for name, value in method.settings.items() if value is not None},
            "problems": self.count,
            "command": command(),
            "environment": self._environment,
        }

    def _judge(self, method: Method) -> Result:
        """Shares of right answers and of wholly right texts; mean and standard deviation of the forwards per row."""
        verdicts: list[tuple[bool, bool]] = []
        forwards: list[int] = []
        tokens = 0
        for begin in range(0, self.count, self.batch):
            rows = slice(begin, begin + self.batch)
            sequences, ledger = self._decode(method, self.prompts[rows], begin)
            verdicts += judged(self.tokenizer, self.problems[rows], sequences[:, self.prompts.shape[1] :])
            forwards += ledger.row_forwards
            tokens += ledger.tokens
        answers, valid = zip(*verdicts, strict=True)
        return {
            "answers": statistics.mean(answers),
            "valid": statistics.mean(valid),
            "forwards": statistics.mean(forwards),
            "forwards_deviation": statistics.pstdev(forwards),
            "tokens_per_forward": tokens / sum(forwards),
        }

    def _time(self, method: Method) -> Result:
        """Seconds per sequence at each batch size: median and standard deviation over batches, after a warm-up."""
        result: Result = {}
        self._decode(method, self.prompts[:1], 0)
        for size in BATCHES:
            seconds = []
            for begin in range(0, self.timed - size + 1, size):
                _, ledger = self._decode(method, self.prompts[begin : begin + size], begin)
                seconds.append(ledger.seconds / size)
            result[f"seconds_{size}"] = statistics.median(seconds)
            result[f"seconds_{size}_deviation"] = statistics.pstdev(seconds)
        return result

    def _decode(self, method: Method, prompts: Tensor, first: int) -> tuple[Tensor, Any]:
        """Each row has its own generator, so that random rules do not depend on the batch either."""
        return decode_masked(
            self.model,
            prompts,
            gen_length=RESPONSE_LENGTH,
            mask_token_id=self.tokenizer.mask_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            generator=[torch.Generator().manual_seed(first + row) for row in range(len(prompts))],
            **method.settings,
        )


def judged(tokenizer: Any, asked: Sequence[Sum], responses: Tensor) -> list[tuple[bool, bool]]:
    """For each problem whether the answer is right, and whether the whole response is."""
    return [problem.judge(tokenizer.decode(row)) for problem, row in zip(asked, responses, strict=True)]
