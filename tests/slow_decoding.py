"""Decoding one row at a time, one position after the other, in Python floats: what the fast code must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class RandomModel:
    """A function of the tokens as any other: each position's logits are one of `kinds` random vectors.

    Which one depends on every token of the row and on the position, so that a commit changes all that follows, and
    ties between positions are common. Padding does not count.
    """

    def __init__(self, vocabulary: int, kinds: int, seed: int, spread: float = 4.0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.bank = torch.randn(kinds, vocabulary, generator=draw, dtype=torch.float64) * spread
        self.factors = torch.randint(1, 1000, (512,), generator=draw)
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        self.calls.append(tuple(input_ids.shape))
        place = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        total = (self.factors[place] * (input_ids + 1) * attention_mask).sum(-1, keepdim=True)
        return SimpleNamespace(logits=self.bank[(total + self.factors[place]) % len(self.bank)])


@dataclass
class Position:
    """Of one position's logits."""

    logits: list[float]

    def __post_init__(self) -> None:
        top = max(self.logits)
        weights = [math.exp(x - top) for x in self.logits]
        self.token = self.logits.index(top)
        self.probabilities = [weight / sum(weights) for weight in weights]
        self.confidence = self.probabilities[self.token]
        first, second = sorted(self.probabilities, reverse=True)[:2]
        self.margin = first - second
        self.entropy = -sum(p * math.log(p) for p in self.probabilities if p > 0)
        first, second = sorted(self.logits, reverse=True)[:2]
        self.gap = first - second


@dataclass
class Moment:
    """What a slow rule knows: `at` every response position; `masked` and `eligible` ones, in order; the schedule."""

    at: list[Position]
    masked: list[int]
    eligible: list[int]
    quota: int
    step: int
    steps: int
    share: float
    uniform: list[float]


Rule = Callable[[Moment], list[int]]


def most(moment: Moment, score: Callable[[Position], float], count: int) -> list[int]:
    return sorted(moment.eligible, key=lambda i: (-score(moment.at[i]), i))[:count]


def by_confidence(p: Position) -> float:
    return p.confidence


def low_confidence(moment: Moment) -> list[int]:
    return most(moment, by_confidence, moment.quota)


def margin(moment: Moment) -> list[int]:
    return most(moment, lambda p: p.margin, moment.quota)


def entropy(moment: Moment) -> list[int]:
    return most(moment, lambda p: -p.entropy, moment.quota)


def random_places(moment: Moment) -> list[int]:
    return sorted(moment.eligible, key=lambda i: -moment.uniform[i])[: moment.quota]


def origin(moment: Moment) -> list[int]:
    return [i for i in moment.eligible if moment.uniform[i] < moment.share]


def threshold(limit: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        sure = [i for i in moment.eligible if moment.at[i].confidence >= limit]
        return sure or most(moment, by_confidence, 1)

    return rule


def factor(limit: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        order = most(moment, by_confidence, len(moment.eligible))
        fits = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - moment.at[order[n - 1]].confidence) < limit]
        return order[: max(fits, default=1)]

    return rule


def entropy_bounded(gamma: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        order = most(moment, lambda p: -p.entropy, len(moment.eligible))
        fits = []
        for n in range(1, len(order) + 1):
            values = [moment.at[i].entropy for i in order[:n]]
            if sum(values[:-1]) <= gamma:  # the last is the largest
                fits.append(n)
        return order[: max(fits, default=1)]

    return rule


def hierarchy(sure: float, least: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        chosen = {i for i in moment.eligible if moment.at[i].confidence >= sure}
        runs: list[list[int]] = []
        for i in moment.eligible:
            if runs and runs[-1][-1] == i - 1:
                runs[-1].append(i)
            else:
                runs.append([i])
        for run in runs:
            lead = max(run, key=lambda i: (moment.at[i].confidence, -i))
            if moment.at[lead].confidence >= least:
                chosen.add(lead)
        return sorted(chosen | set(most(moment, by_confidence, 1)))

    return rule


def prophet(
    thresholds: Sequence[float], base: Rule, *, span: tuple[int, int] | None = None, progress: str = "code"
) -> Rule:
    def rule(moment: Moment) -> list[int]:
        region = moment.masked if span is None else range(span[0], sum(span))
        gaps = [moment.at[i].gap for i in region]
        done = {
            "code": (moment.step + 1) / moment.steps,
            "paper": moment.step / moment.steps,
            "tokens": 1 - len(moment.masked) / len(moment.at),
        }[progress]
        enough = thresholds[0] if done < 0.33 else thresholds[1] if done < 0.67 else thresholds[2]
        if gaps and sum(gaps) / len(gaps) >= enough:
            return list(moment.masked)
        return base(moment)

    return rule


def slow_decode(
    logits_of: Callable[[list[int]], list[list[float]]],
    prompt: list[int],
    *,
    rule: Rule,
    gen_length: int,
    block_length: int,
    steps: int,
    mask: int,
    guidance: float = 0.0,
    constraints: dict[int, int] | None = None,
    ends: Sequence[int] = (),
    schedule: str = "even",
    numbers: Callable[[int], list[float]] = lambda forward: [],
) -> tuple[list[int], list[int], int]:
    """Response, forward of each commit (0: given, or behind the end), and forwards.

    `logits_of` a whole text; `numbers` in (0, 1) of a forward, one a response position, for random rules.
    """
    response = [mask] * gen_length
    for place, token in (constraints or {}).items():
        response[place] = token
    masked = [i for i in range(gen_length) if response[i] == mask]
    committed_at, forwards, blocks = [0] * gen_length, 0, gen_length // block_length
    for block in range(blocks):
        inside = range(block * block_length, (block + 1) * block_length)
        total, step = sum(i in inside for i in masked), 0
        while any(i in inside for i in masked):
            logits = logits_of(prompt + response)[len(prompt) :]
            if guidance:
                blank = logits_of([mask] * len(prompt) + response)[len(prompt) :]
                logits = [
                    [u + (1 + guidance) * (c - u) for c, u in zip(given, free, strict=True)]
                    for given, free in zip(logits, blank, strict=True)
                ]
            for row in logits:
                row[mask] = -math.inf
            forwards += 1
            eligible = [i for i in masked if i in inside]
            a_block = steps // blocks
            share = due(schedule, total, len(eligible), step, a_block) / max(len(eligible), 1)
            at = [Position(row) for row in logits]
            made = block * a_block + min(step, a_block - 1)
            quota = int(share * len(eligible) + 1e-9)
            moment = Moment(at, masked, eligible, quota, made, steps, share, numbers(forwards))
            for i in rule(moment):
                response[i], committed_at[i] = at[i].token, forwards
                masked = [j for j in masked if j != i]
            step += 1
            stop = next((i for i in range(min([*masked, gen_length])) if response[i] in ends), None)
            if stop is not None:
                behind = range(stop + 1, gen_length)
                for i in behind:
                    response[i], committed_at[i] = ends[0], 0
                masked = []
    return response, committed_at, forwards


def due(schedule: str, total: int, left: int, step: int, steps: int) -> float:
    """LLaDA's or Dream's number of tokens, before it is rounded down."""
    if step >= steps - 1:
        return left
    if schedule == "even":
        return min(total // steps + (step < total % steps), left)
    times = [1 - (1 - 1e-3) * i / steps for i in range(steps + 1)]
    return left * (1 - times[step + 1] / times[step])
