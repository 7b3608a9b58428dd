"""Latent refinement: equal to a slow one in float64, and to plain decoding where it does nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from decoding_models import MASK, bert, bundled_kind
from torch import Tensor

import fastsample as fs
from fastsample.decoding.refinement import LatentRefinement, divergence

PROMPTS = torch.tensor([[5, 7, 11, 2, 9], [0, 0, 3, 4, 8], [0, 1, 1, 6, 1]])
PADDING = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
OPTIONS: dict[str, Any] = dict(gen_length=12, mask_token_id=MASK)


def mixture(p: list[float], table: Tensor, settings: LatentRefinement) -> Tensor:
    """(1 - a) e_mask + a sum over the nucleus of p(v) e_v."""
    entropy = -sum(x * math.log(x) for x in p if x > 0)
    a = settings.mixing * (1 - entropy / math.log(len(p)))
    kept, total = [], 0.0
    for token in sorted(range(len(p)), key=lambda v: -p[v]):
        if total > settings.top_p:
            break
        kept.append(token)
        total += p[token]
    soft = sum(p[v] / total * table[v] for v in kept)
    return (1 - a) * table[MASK] + a * soft


def slow_refinement(
    model: Any, prompt: list[int], settings: LatentRefinement, block_length: int, gap: float = math.inf
) -> tuple[list[int], int]:
    """LRD of one prompt, block by block; with `gap`, all is taken once the mean logit gap of the masks reaches it."""
    table = model.get_input_embeddings().weight
    text = prompt + [MASK] * 12
    forwards = 0
    for begin in range(len(prompt), len(text), block_length):
        inside = range(begin, begin + block_length)
        old: dict[int, list[float]] = {}
        refining, made = settings.refine_steps > 0, 0
        while any(text[i] == MASK for i in inside):
            embeddings = [mixture(old[i], table, settings) if i in old else table[text[i]] for i in range(len(text))]
            logits = model(inputs_embeds=torch.stack(embeddings)[None]).logits[0]
            logits[:, MASK] = -torch.inf
            forwards, made = forwards + 1, made + 1
            new = logits.softmax(-1).tolist()
            undecided = [i for i in inside if text[i] == MASK]
            change = math.inf
            if old:
                terms = [
                    sum(p * math.log(p / q) for p, q in zip(new[i], old[i], strict=True) if p > 0) for i in undecided
                ]
                change = max(sum(terms) / len(terms), 0.0)
            masks = [i for i in range(len(text)) if text[i] == MASK]
            two = logits.topk(2).values
            if sum(float(two[i, 0] - two[i, 1]) for i in masks) / len(masks) >= gap:
                chosen = masks
            elif refining:
                chosen = []
                refining = not (change < settings.refined or made >= settings.refine_steps)
            elif change < settings.settled:
                chosen = undecided
            else:
                entropies = {i: -sum(p * math.log(p) for p in new[i] if p > 0) for i in undecided}
                chosen = [min(undecided, key=lambda i: (entropies[i], i))]
            for i in chosen:
                text[i] = int(logits[i].argmax())
            old = {i: new[i] for i in inside if text[i] == MASK}
    return text[len(prompt) :], forwards


SETTINGS = {
    "as published": LatentRefinement(),
    "much mixed, never settled": LatentRefinement(mixing=0.9, top_p=0.6, refined=0.0, settled=0.0, refine_steps=4),
    "mixed, soon settled": LatentRefinement(mixing=0.7, refined=0.5, settled=0.02),
    "no first phase": LatentRefinement(mixing=0.5, top_p=1.0, refine_steps=0, settled=0.01),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_length", [12, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_a_slow_refinement(name: str, block_length: int, seed: int) -> None:
    """A padded batch, each row at its own phase and block."""
    model, settings = bundled_kind(seed), SETTINGS[name]
    found, ledger = fs.decode_masked(
        model, PROMPTS, rule=fs.Entropy(), refinement=settings, attention_mask=PADDING, block_length=block_length,
        **OPTIONS,
    )  # fmt: skip
    for row in range(3):
        prompt = PROMPTS[row][PADDING[row] == 1].tolist()
        expected, forwards = slow_refinement(model, prompt, settings, block_length)
        assert found[row, 5:].tolist() == expected
        assert ledger.row_forwards[row] == forwards


@pytest.mark.parametrize("gap", [1.0, 2.0, 4.0])
def test_prophet_ends_it_in_either_phase(gap: float) -> None:
    model, settings = bundled_kind(), SETTINGS["much mixed, never settled"]
    rule = fs.Prophet((gap, gap, gap), base=fs.Entropy())
    found, ledger = fs.decode_masked(model, PROMPTS[:1], rule=rule, refinement=settings, block_length=4, **OPTIONS)
    expected, forwards = slow_refinement(model, PROMPTS[0].tolist(), settings, 4, gap)
    assert found[0, 5:].tolist() == expected
    assert ledger.row_forwards == [forwards]


@pytest.mark.parametrize("rule", [fs.Entropy(), fs.Threshold(0.5), fs.Prophet((3.0, 2.0, 1.0))])
@pytest.mark.parametrize("kind", [bundled_kind, bert])
def test_without_mixing_and_phases_it_is_plain_decoding(kind: Any, rule: Any) -> None:
    model = kind()
    options: dict[str, Any] = dict(rule=rule, attention_mask=PADDING, block_length=6, guidance_scale=0.4, **OPTIONS)
    expected, plain = fs.decode_masked(model, PROMPTS, **options)
    nothing = LatentRefinement(mixing=0.0, settled=0.0, refine_steps=0)
    found, ledger = fs.decode_masked(model, PROMPTS, refinement=nothing, **options)
    assert torch.equal(found, expected)
    assert torch.equal(ledger.committed_at, plain.committed_at)


def test_the_first_phase_takes_at_most_its_steps() -> None:
    """Never refined: 12 commits after 20 forwards (5 in each of 3 blocks); settled at once: those alone and one."""
    model = bundled_kind()
    for length, steps in ((12, 20), (4, 5)):
        blocks = 12 // length
        never = LatentRefinement(refined=0.0, settled=0.0, refine_steps=steps)
        _, ledger = fs.decode_masked(
            model, PROMPTS, rule=fs.Entropy(), refinement=never, block_length=length, **OPTIONS
        )
        assert ledger.row_forwards == [blocks * steps + 12] * 3
        at_once = LatentRefinement(refined=math.inf, settled=math.inf, refine_steps=steps)
        _, ledger = fs.decode_masked(
            model, PROMPTS, rule=fs.Entropy(), refinement=at_once, block_length=length, **OPTIONS
        )
        # a change is known from the second forward on
        assert ledger.row_forwards == [blocks * 3] * 3


def test_it_goes_with_a_cache() -> None:
    model = bundled_kind()
    options: dict[str, Any] = dict(
        rule=fs.Entropy(), refinement=LatentRefinement(mixing=0.6), attention_mask=PADDING, block_length=4, **OPTIONS
    )
    expected, _ = fs.decode_masked(model, PROMPTS, **options)
    found, _ = fs.decode_masked(model, PROMPTS, cache=fs.Caching("prefix", refresh=1), **options)
    assert torch.equal(found, expected)
    together, _ = fs.decode_masked(model, PROMPTS, cache="dual", **options)
    for row in range(3):
        own = PROMPTS[row : row + 1, PADDING[row] == 1]
        alone, _ = fs.decode_masked(model, own, cache="dual", **{**options, "attention_mask": None})
        assert torch.equal(alone[0, -12:], together[row, 5:])


def test_divergence_is_the_mean_of_kl() -> None:
    draw = torch.Generator().manual_seed(0)
    new, old = torch.randn(2, 2, 5, 7, generator=draw, dtype=torch.float64)
    new[..., 3] = old[..., 3] = -torch.inf
    masked = torch.tensor([[True, False, True, True, False], [False] * 5])
    p, q = new.softmax(-1), old.softmax(-1)
    terms = torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)
    found = divergence(new, old, masked)
    torch.testing.assert_close(found[0], terms[0, [0, 2, 3]].mean())
    assert found[1] == math.inf
