"""The decoding engine: equal to a slow one, row by row, whatever the rule, batch, blocks, guidance or padding."""

from __future__ import annotations

from typing import Any

import pytest
import slow_decoding as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsample as fs
from fastsample.decoding import Adapter, Commit, CommitRule, Decoder
from fastsample.decoding.statistics import uniforms

VOCABULARY, MASK = 9, 8
RULES: dict[str, tuple[CommitRule, slow.Rule]] = {
    "low confidence": (fs.LowConfidence(), slow.low_confidence),
    "margin": (fs.Margin(), slow.margin),
    "entropy": (fs.Entropy(), slow.entropy),
    "random": (fs.Random(), slow.random_places),
    "origin": (fs.Origin(), slow.origin),
    "threshold": (fs.Threshold(0.8), slow.threshold(0.8)),
    "factor": (fs.Factor(0.7), slow.factor(0.7)),
    "entropy-bounded": (fs.EntropyBounded(0.6), slow.entropy_bounded(0.6)),
    "hierarchy": (fs.Hierarchy(0.9, 0.5), slow.hierarchy(0.9, 0.5)),
    "risk": (fs.Risk(0.3), slow.risk(0.3)),
    "entropy, drawn": (fs.Entropy(alg_temp=0.4), slow.drawn(lambda p: -p.entropy, 0.4)),
    "KLASS": (fs.KLASS(0.5, 0.4, 1), slow.klass(0.5, 0.4, 1)),
    "KLASS, longer": (fs.KLASS(0.4, 1.5, 2), slow.klass(0.4, 1.5, 2)),
    "PUNT": (fs.PUNT(0.5), slow.punt(0.5)),
    "prophet": (fs.Prophet((4.5, 3.0, 2.0)), slow.prophet((4.5, 3.0, 2.0), slow.low_confidence)),
    "prophet, paper": (
        fs.Prophet((4.0, 3.0, 2.0), progress="paper"),
        slow.prophet((4.0, 3.0, 2.0), slow.low_confidence, progress="paper"),
    ),
    "prophet of a span on a threshold": (
        fs.Prophet((6.0, 4.0, 2.0), region=(1, 2), progress="tokens", base=fs.Threshold(0.95)),
        slow.prophet((6.0, 4.0, 2.0), slow.threshold(0.95), span=(1, 2), progress="tokens"),
    ),
}


def batch_of(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    tokens = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(tokens), torch.tensor(mask)


def texts(model: slow.RandomModel) -> Any:
    """The model as the slow decoder calls it: a text in, its logits out."""

    def logits_of(text: list[int]) -> list[list[float]]:
        tokens = torch.tensor([text])
        return model(tokens, torch.ones_like(tokens)).logits[0].tolist()

    return logits_of


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_each_rule_is_that_of_a_slow_decoder(name: str, data: st.DataObject) -> None:
    """Tokens, the forward of each commit, and the number of forwards; float64, with ties."""
    rule, slow_rule = RULES[name]
    model = slow.RandomModel(VOCABULARY, data.draw(st.integers(2, 12)), data.draw(st.integers(0, 10**6)))
    token = st.integers(0, VOCABULARY - 2)
    prompts = data.draw(st.lists(st.lists(token, min_size=1, max_size=4), min_size=1, max_size=3))
    block, blocks = data.draw(st.sampled_from([(12, 1), (6, 2), (4, 3), (5, 3), (7, 2)]))
    common: dict[str, Any] = dict(
        gen_length=12, block_length=block, steps=blocks * data.draw(st.integers(1, block)),
        constraints=data.draw(st.dictionaries(st.integers(0, 11), token, max_size=4)),
        schedule=data.draw(st.sampled_from(["even", "dream"])),
    )  # fmt: skip
    guidance = data.draw(st.sampled_from([0.0, 0.5]))
    ends = data.draw(st.sampled_from([(), (3,), (5, 2)]))
    ids, attention = batch_of(prompts)
    found, ledger = fs.decode_masked(
        model, ids, rule=rule, mask_token_id=MASK, attention_mask=attention, guidance_scale=guidance,
        eos_token_id=ends, generator=[torch.Generator().manual_seed(row) for row in range(len(ids))], **common,
    )  # fmt: skip
    assert torch.equal(found[:, : ids.shape[1]], ids)
    for row, prompt in enumerate(prompts):
        seeds = torch.randint(2**63 - 1, (1, 12), generator=torch.Generator().manual_seed(row))
        expected, committed_at, forwards = slow.slow_decode(
            texts(model), prompt, rule=slow_rule, mask=MASK, guidance=guidance, ends=ends,
            numbers=lambda forward, seeds=seeds: uniforms(seeds, torch.tensor([forward]))[0].tolist(), **common,
        )  # fmt: skip
        assert found[row, ids.shape[1] :].tolist() == expected
        assert ledger.committed_at[row].tolist() == committed_at
        assert ledger.row_forwards[row] == forwards
    assert ledger.rows == sum(ledger.row_forwards) * (2 if guidance else 1)
    assert ledger.forward_calls >= max(ledger.row_forwards, default=0)
    if name != "PUNT":  # whose rows try texts out in turn
        assert ledger.forward_calls == max(ledger.row_forwards, default=0)
    assert ledger.tokens == int((ledger.committed_at > 0).sum())


def llada(model: Any, prompt: Tensor, steps: int, length: int, block: int, guidance: float) -> tuple[Tensor, int]:
    """LLaDA's published loop for one prompt [1, P]: the whole text each forward, top-k of the block's confidences."""
    text = torch.cat([prompt, torch.full((1, length), MASK)], 1)
    is_prompt, forwards = text != MASK, 0
    for number in range(length // block):
        begin = prompt.shape[1] + number * block
        masks = int((text[:, begin : begin + block] == MASK).sum())
        a_block = steps // (length // block)
        counts = [masks // a_block + (i < masks % a_block) for i in range(a_block)]
        for count in counts:
            undecided = text == MASK
            logits = model(text, torch.ones_like(text)).logits
            if guidance:
                free = model(torch.where(is_prompt, MASK, text), torch.ones_like(text)).logits
                logits = free + (guidance + 1) * (logits - free)
            logits[..., MASK] = -torch.inf
            forwards += 1
            candidate = logits.argmax(-1)
            confidence = logits.softmax(-1).gather(-1, candidate[..., None])[..., 0]
            confidence[:, begin + block :] = -torch.inf
            confidence = torch.where(undecided, confidence, -torch.inf)
            if count:
                chosen = confidence[0].topk(count).indices
                text[0, chosen] = candidate[0, chosen]
    return text, forwards


@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize(("length", "block", "steps"), [(24, 24, 24), (24, 8, 12), (24, 8, 15), (16, 4, 4)])
def test_low_confidence_is_llada(length: int, block: int, steps: int, guidance: float) -> None:
    model = slow.RandomModel(VOCABULARY, 4096, seed=3)
    prompt = torch.tensor([[1, 5, 2]])
    expected, forwards = llada(model, prompt, steps, length, block, guidance)
    found, ledger = fs.decode_masked(
        model, prompt, rule=fs.LowConfidence(), gen_length=length, block_length=block, steps=steps,
        mask_token_id=MASK, guidance_scale=guidance,
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert ledger.row_forwards == [forwards] == [steps]
    assert ledger.model_evaluations == steps * (2 if guidance else 1)


def test_a_finished_row_takes_no_part() -> None:
    """Row by row the batch shrinks, and every row comes to its own text in its own forwards."""
    model = slow.RandomModel(VOCABULARY, 40, seed=11, spread=6.0)
    ids = torch.randint(0, MASK, (6, 4), generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = dict(rule=fs.Threshold(0.9), gen_length=16, block_length=4, mask_token_id=MASK)
    found, ledger = fs.decode_masked(model, ids, **options)
    sizes = [rows for rows, _ in model.calls]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(ledger.row_forwards)) > 1
    assert sum(sizes) == sum(ledger.row_forwards)
    for row in range(6):
        alone, own = fs.decode_masked(model, ids[row : row + 1], **options)
        assert torch.equal(alone[0], found[row])
        assert own.row_forwards[0] == ledger.row_forwards[row]
        assert torch.equal(own.committed_at[0], ledger.committed_at[row])


@pytest.mark.parametrize("rule", [fs.Random(), fs.Origin(), fs.LowConfidence(), fs.Prophet((3.0, 2.0, 1.0))])
def test_a_drawn_row_depends_on_its_generator_alone(rule: CommitRule) -> None:
    model = slow.RandomModel(VOCABULARY, 500, seed=2, spread=2.0)
    ids, attention = batch_of([[1, 2, 3, 4], [5], [6, 7]])
    options: dict[str, Any] = dict(
        rule=rule, gen_length=12, block_length=4, steps=6, mask_token_id=MASK, temperature=0.8, top_p=0.95, top_k=6
    )

    def generators(seeds: list[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    found, _ = fs.decode_masked(model, ids, attention_mask=attention, generator=generators([0, 1, 2]), **options)
    again, _ = fs.decode_masked(model, ids, attention_mask=attention, generator=generators([0, 1, 2]), **options)
    other, _ = fs.decode_masked(model, ids, attention_mask=attention, generator=generators([0, 1, 3]), **options)
    assert torch.equal(found, again)
    assert torch.equal(found[:2], other[:2])
    assert not torch.equal(found[2], other[2])
    for row in range(3):
        own = ids[row : row + 1, attention[row] == 1]
        alone, _ = fs.decode_masked(model, own, generator=generators([row]), **options)
        assert torch.equal(alone[0, -12:], found[row, -12:])


def test_candidates_are_drawn_from_the_softmax() -> None:
    """4000 rows of one position: frequencies within 4 standard errors, and none that top_k leaves out."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -2.0, 0.0, 1.5, 9.0], dtype=torch.float64)
    rows, heat = 4000, 0.7

    def model(input_ids: Tensor, attention_mask: Tensor) -> Any:
        return slow.SimpleNamespace(logits=logits.expand(*input_ids.shape, -1))

    for top_k in (None, 3):
        found, _ = fs.decode_masked(
            model, torch.zeros(rows, 1, dtype=torch.int64), rule=fs.LowConfidence(), gen_length=1, mask_token_id=MASK,
            temperature=heat, top_k=top_k, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        kept = logits[:MASK] / heat
        if top_k is not None:
            kept = kept.masked_fill(kept < kept.topk(top_k).values[-1], -torch.inf)
        share = kept.softmax(-1)
        counted = torch.bincount(found[:, 1], minlength=MASK) / rows
        assert ((counted - share).abs() <= 4 * (share * (1 - share) / rows).sqrt()).all()


def test_random_rules_follow_the_schedule() -> None:
    """Random commits the quota; Origin's number is binomial, within 4 standard errors of its mean."""
    model = slow.RandomModel(VOCABULARY, 500, seed=2)
    ids = torch.zeros(400, 1, dtype=torch.int64)
    options: dict[str, Any] = dict(gen_length=12, steps=4, mask_token_id=MASK)
    _, ledger = fs.decode_masked(model, ids, rule=fs.Random(), generator=torch.Generator().manual_seed(0), **options)
    assert all((ledger.committed_at == step).sum(-1).eq(3).all() for step in range(1, 5))
    places = (ledger.committed_at == 1).double().mean(0)
    assert ((places - 0.25).abs() <= 4 * (0.25 * 0.75 / 400) ** 0.5).all()
    _, ledger = fs.decode_masked(
        model, ids, rule=fs.Origin(), schedule="dream", generator=torch.Generator().manual_seed(0), **options
    )
    share = 0.999 / 4
    assert abs((ledger.committed_at == 1).double().mean() - share) <= 4 * (share * (1 - share) / 4800) ** 0.5
    assert ledger.committed_at.min() >= 1


def test_the_stream_is_what_was_committed() -> None:
    model = slow.RandomModel(VOCABULARY, 60, seed=5)
    ids, attention = batch_of([[1, 2], [3]])
    seen: list[Commit] = []
    sizes: list[int] = []

    def take(commits: list[Commit]) -> None:
        seen.extend(commits)
        sizes.append(len(commits))

    found, ledger = fs.decode_masked(
        model, ids, rule=fs.Threshold(0.7), gen_length=12, block_length=6, mask_token_id=MASK,
        attention_mask=attention, stream=take, constraints={4: 2},
    )  # fmt: skip
    assert len(seen) == 22 == len({(commit.row, commit.position) for commit in seen})
    assert len(sizes) == ledger.forward_calls
    for row, position, token, forward in seen:
        assert found[row, 2 + position] == token
        assert ledger.committed_at[row, position] == forward
    assert ledger.tokens == 22


def test_a_callback_sees_and_ends_a_run() -> None:
    model = slow.RandomModel(VOCABULARY, 60, seed=5)
    ids = torch.tensor([[1, 2], [3, 4]])
    left: list[int] = []

    def callback(decoder: Decoder) -> bool:
        left.append(int((decoder.tokens == MASK).sum()))
        return decoder.forwards == 3

    found, ledger = fs.decode_masked(
        model, ids, rule=fs.LowConfidence(), gen_length=8, mask_token_id=MASK, callback=callback
    )
    assert left == [14, 12, 10]
    assert int((found == MASK).sum()) == 10
    assert ledger.tokens == 6
    assert ledger.row_forwards == [3, 3]


def test_shifted_logits() -> None:
    """A model that gives each position's logits one earlier decodes the same text."""
    model = slow.RandomModel(VOCABULARY, 300, seed=8)

    def early(input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = model(input_ids, attention_mask).logits
        return slow.SimpleNamespace(logits=torch.cat([logits[:, 1:], logits[:, :1]], 1))

    ids, attention = batch_of([[1, 2, 3], [4]])
    options: dict[str, Any] = dict(
        rule=fs.Threshold(0.8), gen_length=12, block_length=4, mask_token_id=MASK, attention_mask=attention
    )
    expected, _ = fs.decode_masked(model, ids, **options)
    found, _ = fs.decode_masked(early, ids, adapter=Adapter(shifted=True), **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("shifted", [False, True])
def test_no_prompt(shifted: bool) -> None:
    """From nothing: where logits are shifted, the first position has those of the first."""
    model = slow.RandomModel(VOCABULARY, 300, seed=8)
    read: list[int] = []

    def watched(input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = model(input_ids, attention_mask).logits
        read.append(int(logits[0, 0, :MASK].argmax()))
        return slow.SimpleNamespace(logits=logits)

    found, _ = fs.decode_masked(
        watched, torch.zeros(2, 0, dtype=torch.int64), rule=fs.Threshold(0.99), gen_length=4, mask_token_id=MASK,
        adapter=Adapter(shifted=shifted),
    )  # fmt: skip
    assert not (found == MASK).any()
    assert torch.equal(found[0], found[1])
    assert int(found[0, 0]) in read


def test_logits_that_are_not_finite_are_an_error() -> None:
    model = slow.RandomModel(VOCABULARY, 300, seed=8)

    def broken(input_ids: Tensor, attention_mask: Tensor) -> Any:
        logits = model(input_ids, attention_mask).logits
        if len(model.calls) == 3:
            logits[1, -1] = torch.nan
        return slow.SimpleNamespace(logits=logits)

    with pytest.raises(RuntimeError, match="row 1 are not finite at forward 3"):
        fs.decode_masked(broken, torch.tensor([[1], [2]]), rule=fs.LowConfidence(), gen_length=4, mask_token_id=MASK)


def test_nothing_to_decide_takes_no_forward() -> None:
    model = slow.RandomModel(VOCABULARY, 10, seed=0)
    found, ledger = fs.decode_masked(
        model, torch.tensor([[1]]), rule=fs.LowConfidence(), gen_length=2, mask_token_id=MASK,
        constraints=fs.anchor(0, [5, 6]),
    )  # fmt: skip
    assert found.tolist() == [[1, 5, 6]]
    assert model.calls == []
    assert ledger.tokens == ledger.forward_calls == 0
