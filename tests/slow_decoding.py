"""Decoding one row at a time, one position after the other, in Python floats: what the fast code must equal."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


def kl(new: list[float], old: list[float]) -> float:
    """Divergence of probabilities, in nats."""
    return sum(p * (math.log(p) - (math.log(q) if q else -math.inf)) for p, q in zip(new, old, strict=True) if p)


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
    past: list[list[Position]] = field(default_factory=list)
    """`at` of each forward before this one."""
    block_step: int = 0
    """Forwards of the block before this one."""
    tried: Callable[[dict[int, int]], list[Position]] | None = None
    """What the model would say were these positions decided so; a forward."""


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


def risk(budget: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        order = most(moment, by_confidence, len(moment.eligible))
        fits = [n for n in range(len(order) + 1) if sum(1 - moment.at[i].confidence for i in order[:n]) <= budget]
        return order[: max(*fits, 1)] if len(fits) > 1 else order[:1]

    return rule


def drawn(score: Callable[[Position], float], heat: float) -> Rule:
    """As many as the quota, by score / heat and Gumbel noise."""

    def rule(moment: Moment) -> list[int]:
        noise = [-math.log(-math.log(u)) for u in moment.uniform]
        order = sorted(moment.eligible, key=lambda i: -(score(moment.at[i]) / heat + noise[i]))
        return order[: moment.quota]

    return rule


def klass(sure: float, near: float, history: int) -> Rule:
    def rule(moment: Moment) -> list[int]:
        def stable(i: int) -> bool:
            steps = [*moment.past, moment.at]
            changes = [kl(new[i].probabilities, old[i].probabilities) for old, new in itertools.pairwise(steps)]
            return len(changes) >= history and all(change < near for change in changes[-history:])

        ready = [i for i in moment.eligible if moment.at[i].confidence > sure and stable(i)]
        if moment.block_step >= history - 1 and ready:
            return ready
        return most(moment, by_confidence, moment.quota)

    return rule


def punt(epsilon: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        order = most(moment, by_confidence, len(moment.eligible))
        number = {i: n for n, i in enumerate(order)}
        kept = set(order)
        for digit in reversed(range(max(len(order) - 1, 0).bit_length())):
            low = {i for i in kept if not number[i] >> digit & 1}
            assert moment.tried is not None
            after = moment.tried({i: moment.at[i].token for i in low})
            for i in kept - low:
                if kl(after[i].probabilities, moment.at[i].probabilities) > epsilon:
                    kept.remove(i)
        return sorted(kept)

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
    committed_at, forwards, tries, blocks = [0] * gen_length, 0, 0, math.ceil(gen_length / block_length)

    def read(text: list[int]) -> list[Position]:
        logits = logits_of(prompt + text)[len(prompt) :]
        if guidance:
            free = [mask if i in (constraints or {}) else token for i, token in enumerate(text)]
            blank = logits_of([mask] * len(prompt) + free)[len(prompt) :]
            logits = [
                [u + (1 + guidance) * (c - u) for c, u in zip(given, free, strict=True)]
                for given, free in zip(logits, blank, strict=True)
            ]
        for row in logits:
            row[mask] = -math.inf
        return [Position(row) for row in logits]

    def tried(tokens: dict[int, int]) -> list[Position]:
        nonlocal tries
        tries += 1
        return read([tokens.get(i, token) for i, token in enumerate(response)])

    past: list[list[Position]] = []
    for block in range(blocks):
        inside = range(block * block_length, min((block + 1) * block_length, gen_length))
        total, step = sum(i in inside for i in masked), 0
        while any(i in inside for i in masked):
            at = read(response)
            forwards += 1
            eligible = [i for i in masked if i in inside]
            a_block = steps // blocks
            share = due(schedule, total, len(eligible), step, a_block) / max(len(eligible), 1)
            made = block * a_block + min(step, a_block - 1)
            quota = int(share * len(eligible) + 1e-9)
            moment = Moment(at, masked, eligible, quota, made, steps, share, numbers(forwards), past, step, tried)
            chosen = rule(moment)
            past.append(at)
            for i in chosen:
                response[i], committed_at[i] = at[i].token, forwards
                masked = [j for j in masked if j != i]
            step += 1
            stop = next((i for i in range(min([*masked, gen_length])) if response[i] in ends), None)
            if stop is not None:
                behind = range(stop + 1, gen_length)
                for i in behind:
                    response[i], committed_at[i] = ends[0], 0
                masked = []
    return response, committed_at, forwards + tries


@dataclass
class Draft:
    """A decided position of the block."""

    confidence: float
    forward: int
    returned: int


def slow_checked(
    read: Callable[[list[int]], list[Position]],
    look: Callable[[list[int], list[int]], dict[int, float]],
    *,
    rule: Rule,
    looked_at: Callable[[dict[int, Draft]], list[int]],
    taken_back: Callable[[dict[int, Draft], dict[int, float], int, int], list[int]],
    gen_length: int,
    block_length: int,
    mask: int,
) -> tuple[list[int], list[int], int]:
    """As :func:`slow_decode`, by a rule that takes drafts back.

    `read` a response; `look` gives the probability of the tokens at some of its positions, were they masked.
    `taken_back` by the drafts, these probabilities, how many tokens are committed, and the forward.
    """
    response, committed_at, forwards = [mask] * gen_length, [0] * gen_length, 0
    returned, confidence = [0] * gen_length, [0.0] * gen_length
    for start in range(0, gen_length, block_length):
        inside = range(start, min(start + block_length, gen_length))
        while any(response[i] == mask for i in inside):
            drafts = {i: Draft(confidence[i], committed_at[i], returned[i]) for i in inside if response[i] != mask}
            looked = looked_at(drafts)
            at, found = read(response), look(response, looked) if looked else {}
            forwards += 1
            masked = [i for i in range(gen_length) if response[i] == mask]
            eligible = [i for i in masked if i in inside]
            chosen = rule(Moment(at, masked, eligible, 1, 0, gen_length, 1.0, []))
            back = taken_back(drafts, found, len(chosen), forwards)
            for i in chosen:
                response[i], committed_at[i], confidence[i] = at[i].token, forwards, at[i].confidence
            for i in back:
                response[i], committed_at[i] = mask, 0
                returned[i] += 1
    return response, committed_at, forwards


def checked_policy(certain: float, support: float, returns: int) -> dict[str, Any]:
    """The policy of draft and check."""

    def looked_at(drafts: dict[int, Draft]) -> list[int]:
        return [i for i, draft in drafts.items() if draft.confidence < certain and draft.returned < returns]

    def taken_back(drafts: dict[int, Draft], found: dict[int, float], chosen: int, forward: int) -> list[int]:
        return [i for i, probability in found.items() if probability < support]

    return {"looked_at": looked_at, "taken_back": taken_back}


def wino_policy(back: float) -> dict[str, Any]:
    """The authors': fewer than the last forward committed, and only where this one commits several."""

    def taken_back(drafts: dict[int, Draft], found: dict[int, float], chosen: int, forward: int) -> list[int]:
        low = sorted((i for i, probability in found.items() if probability < back), key=lambda i: (found[i], i))
        last = sum(draft.forward == forward - 1 for draft in drafts.values())
        if chosen <= 1:
            return []
        return low[: last - 1] if len(low) >= last else low

    return {"looked_at": list, "taken_back": taken_back}


def wino(threshold: float) -> Rule:
    def rule(moment: Moment) -> list[int]:
        most_at_once = min(max(int(len(moment.eligible) * 0.7), 5), 20)
        sure = [i for i in moment.eligible if moment.at[i].confidence > threshold]
        order = sorted(sure, key=lambda i: (-moment.at[i].confidence, i))
        return order[:most_at_once] or most(moment, by_confidence, 1)

    return rule


def slow_credit(
    logits_of: Callable[[list[int]], list[list[float]]],
    prompt: list[int],
    *,
    sure: float,
    weight: float,
    boost: float,
    decay: float,
    gen_length: int,
    block_length: int,
    mask: int,
) -> tuple[list[int], list[int], int]:
    """As :func:`slow_decode`, by dInfer's credit."""
    response, committed_at, forwards = [mask] * gen_length, [0] * gen_length, 0
    for start in range(0, gen_length, block_length):
        inside = range(start, min(start + block_length, gen_length))
        credit = {i: [0.0] * len(logits_of(prompt + response)[0]) for i in inside}
        while any(response[i] == mask for i in inside):
            logits = logits_of(prompt + response)[len(prompt) :]
            forwards += 1
            at = {}
            for i in inside:
                logits[i][mask] = -math.inf
                plain = Position(logits[i])
                credit[i] = [decay * value for value in credit[i]]
                if response[i] == mask:
                    credit[i][plain.token] += plain.confidence**boost
                fused = [x + weight * math.log(1 + c) for x, c in zip(logits[i], credit[i], strict=True)]
                at[i] = Position(fused)
            eligible = [i for i in inside if response[i] == mask]
            chosen = [i for i in eligible if at[i].confidence >= sure]
            for i in chosen or [min(eligible, key=lambda i: (-at[i].confidence, i))]:
                response[i], committed_at[i] = at[i].token, forwards
    return response, committed_at, forwards


def due(schedule: str, total: int, left: int, step: int, steps: int) -> float:
    """LLaDA's or Dream's number of tokens, before it is rounded down."""
    if step >= steps - 1:
        return left
    if schedule == "even":
        return min(total // steps + (step < total % steps), left)
    times = [1 - (1 - 1e-3) * i / steps for i in range(steps + 1)]
    return left * (1 - times[step + 1] / times[step])
