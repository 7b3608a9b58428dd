"""Commit rules and statistics: definitions in float64 with ties, both backends, and what rules may rely on."""

from __future__ import annotations

import time
from typing import Any

import pytest
import slow_decoding as slow
import torch
from fastsample_kernels import use_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastsample as fs
from fastsample.decoding import CommitRule, Progress, Sampling, Statistics, statistics_of
from fastsample.decoding.statistics import nucleus, probability_of, uniforms

RULES: dict[str, tuple[CommitRule, slow.Rule]] = {
    "low confidence": (fs.LowConfidence(), slow.low_confidence),
    "margin": (fs.Margin(), slow.margin),
    "entropy": (fs.Entropy(), slow.entropy),
    "random": (fs.Random(), slow.random_places),
    "origin": (fs.Origin(), slow.origin),
    "threshold": (fs.Threshold(0.6), slow.threshold(0.6)),
    "factor": (fs.Factor(1.0), slow.factor(1.0)),
    "factor, wide": (fs.Factor(2.5), slow.factor(2.5)),
    "entropy-bounded": (fs.EntropyBounded(1.0), slow.entropy_bounded(1.0)),
    "entropy-bounded by nothing": (fs.EntropyBounded(0.0), slow.entropy_bounded(0.0)),
    "hierarchy": (fs.Hierarchy(0.8, 0.4), slow.hierarchy(0.8, 0.4)),
    "risk": (fs.Risk(0.8), slow.risk(0.8)),
    "risk of nothing": (fs.Risk(0.0), slow.risk(0.0)),
    "low confidence, drawn": (fs.LowConfidence(0.3), slow.drawn(slow.by_confidence, 0.3)),
    "margin, drawn": (fs.Margin(alg_temp=0.5), slow.drawn(lambda p: p.margin, 0.5)),
    "entropy, drawn": (fs.Entropy(alg_temp=0.7), slow.drawn(lambda p: -p.entropy, 0.7)),
    "prophet": (fs.Prophet((2.5, 2.0, 1.5)), slow.prophet((2.5, 2.0, 1.5), slow.low_confidence)),
    "prophet of a span": (
        fs.Prophet((3.0, 2.0, 1.0), region=(2, 3), base=fs.Entropy(), progress="paper"),
        slow.prophet((3.0, 2.0, 1.0), slow.entropy, span=(2, 3), progress="paper"),
    ),
}


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_each_rule_is_its_definition(name: str, data: st.DataObject) -> None:
    """Rows of a batch at different steps, with ties between positions and between tokens."""
    rule, slow_rule = RULES[name]
    rows, length, kinds = 3, 10, data.draw(st.integers(1, 6))
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    bank = torch.randn(kinds, 7, generator=draw, dtype=torch.float64) * 2
    if data.draw(st.booleans()):
        # ties of tokens; kinds of different scales, as rounding decides between equal values of other origin
        bank = bank.round() * (1 + torch.rand(kinds, 1, generator=draw, dtype=torch.float64))
    logits = bank[torch.randint(kinds, (rows, length), generator=draw)]
    masked = torch.rand(rows, length, generator=draw) < 0.7
    eligible = masked & (torch.arange(length) < 8)
    steps, step = 9, torch.randint(9, (rows,), generator=draw)
    quota = torch.randint(4, (rows,), generator=draw)
    uniform = torch.rand(rows, length, generator=draw).clamp(min=2**-30)
    progress = Progress(step, steps, quota, quota / 4, first=0, length=length, uniform=uniform)
    statistics = statistics_of(logits)
    found = rule.commit(statistics, masked, eligible, progress)
    for row in range(rows):
        at = [slow.Position(values) for values in logits[row].tolist()]
        assert [position.token for position in at] == statistics.token[row].tolist()
        moment = slow.Moment(
            at,
            places(masked[row]),
            places(eligible[row]),
            int(quota[row]),
            int(step[row]),
            steps,
            int(quota[row]) / 4,
            uniform[row].tolist(),
        )
        expected = slow_rule(moment) if moment.eligible or "prophet" in name else []
        assert places(found[row]) == sorted(expected)


def places(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def test_statistics_are_their_definitions() -> None:
    logits = torch.randn(4, 6, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    found = statistics_of(logits)
    probabilities = logits.softmax(-1)
    two, large = probabilities.topk(2).values, logits.topk(2).values
    close: Any = dict(rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.confidence, two[..., 0], **close)
    torch.testing.assert_close(found.margin, two[..., 0] - two[..., 1], **close)
    torch.testing.assert_close(found.entropy, -(probabilities * probabilities.log()).sum(-1), **close)
    torch.testing.assert_close(found.gap, large[..., 0] - large[..., 1], **close)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("piece", [1, 26, 70, 400])
def test_statistics_by_pieces(piece: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a piece holds, a view of any strides is read to the same values, and left as it was."""
    draw = torch.Generator().manual_seed(0)
    whole = (torch.randn(3, 9, 13, dtype=torch.float64, generator=draw) * 3).to(dtype)
    logits, seed = whole[:, 2:8], torch.arange(18).reshape(3, 6)
    for sampling in (Sampling(), Sampling(0.7), Sampling(0.7, scaled=True), Sampling(0.7, top_p=0.8, top_k=5)):
        options: Any = dict(seed=seed, draw=torch.tensor([3, 4, 5]), excluded=4)
        before = whole.clone()
        expected = statistics_of(logits.contiguous(), sampling, **options)
        with monkeypatch.context() as patch:
            patch.setattr("fastsample.decoding.statistics.PIECE", piece)
            found = statistics_of(logits, sampling, **options)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(whole, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_not_needed_is_not_there(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    every = statistics_of(logits)
    for needs in ((), ("confidence",), ("margin",), ("entropy",), ("gap", "token"), ("margin", "gap", "entropy")):
        found = statistics_of(logits, needs=needs)
        for name, ours, theirs in zip(Statistics._fields, found, every, strict=True):
            if name in needs or name in ("token", "confidence"):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
            elif name in ("margin", "entropy") or "margin" not in needs:
                assert ours is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_an_excluded_token_is_never_predicted(dtype: torch.dtype, backend: str) -> None:
    """As if its logit were -inf, also where it is the largest or not a number."""
    logits = torch.randn(3, 5, 17, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[0, :, 6], logits[1, :, 6], hidden = 50.0, torch.nan, logits.clone()
    hidden[..., 6] = -torch.inf
    seed = torch.arange(15).reshape(3, 5)
    for sampling in (Sampling(), Sampling(1.3), Sampling(0.8, top_k=4, scaled=True)):
        options: Any = dict(seed=seed, draw=torch.tensor(1))
        found = statistics_of(logits, sampling, excluded=6, **options)
        for ours, theirs in zip(found, statistics_of(hidden, sampling, **options), strict=True):
            assert torch.equal(ours, theirs)
    token = torch.randint(6, (3, 5), generator=torch.Generator().manual_seed(0))
    wanted = hidden.double().softmax(-1).gather(-1, token[..., None])[..., 0]
    found = probability_of(logits, token, excluded=6)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_threshold_reads_for_little_more_than_a_softmax(dtype: torch.dtype) -> None:
    """At most 1.5 times softmax and max of logits as large as LLaDA's, the best of runs in turn."""
    logits = torch.randn(1, 16, 126464, generator=torch.Generator().manual_seed(0)).to(dtype)

    def seconds(run: Any) -> float:
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    ours, plain = [], []
    for _ in range(40):
        plain.append(seconds(lambda: logits.float().softmax(-1).max(-1)))
        ours.append(seconds(lambda: statistics_of(logits, needs=fs.Threshold().needs, excluded=126336)))
        if len(ours) > 4 and min(ours) <= 1.5 * min(plain):
            return
    assert min(ours) <= 1.5 * min(plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scaled_statistics_are_of_what_is_drawn_from(dtype: torch.dtype, backend: str) -> None:
    """Temperature and top-k change confidence, margin and entropy where they are `scaled`; the gap never."""
    draw = torch.Generator().manual_seed(1)
    logits = (torch.randn(3, 5, 13, dtype=torch.float64, generator=draw) * 2).to(dtype)
    seed, draws = torch.arange(15).reshape(3, 5), torch.tensor(7)
    sampling = Sampling(0.6, top_k=4, scaled=True)
    found = statistics_of(logits, sampling, seed=seed, draw=draws)
    given = statistics_of(logits, Sampling(0.6, top_k=4), seed=seed, draw=draws)
    wide = logits.double() / 0.6
    kept = wide.masked_fill(wide < wide.topk(4).values[..., -1:], -torch.inf).softmax(-1)
    two = kept.topk(2).values
    # float32 statistics of logits up to 10 / 0.6
    bound: Any = dict(rtol=0, atol=1e-12 if dtype == torch.float64 else 2.0**-24 * 4 * 20 + 2.0**-20)
    torch.testing.assert_close(found.confidence.double(), kept.gather(-1, found.token[..., None])[..., 0], **bound)
    torch.testing.assert_close(found.margin.double(), two[..., 0] - two[..., 1], **bound)
    torch.testing.assert_close(found.entropy.double(), torch.special.entr(kept).sum(-1), **bound)
    assert torch.equal(found.token, given.token)
    assert torch.equal(found.gap, given.gap)
    plain = logits.double().softmax(-1)
    torch.testing.assert_close(given.confidence.double(), plain.gather(-1, found.token[..., None])[..., 0], **bound)
    torch.testing.assert_close(given.entropy.double(), torch.special.entr(plain).sum(-1), **bound)


def test_a_draw_does_not_depend_on_which_positions_are_read() -> None:
    logits = torch.randn(2, 9, 40, generator=torch.Generator().manual_seed(0))
    seed, draw = torch.arange(18).reshape(2, 9), torch.tensor([3, 3])
    hot = Sampling(1.0)
    whole = statistics_of(logits, hot, seed=seed, draw=draw).token
    part = statistics_of(logits[1:, 4:7], hot, seed=seed[1:, 4:7], draw=draw[1:]).token
    assert torch.equal(whole[1:, 4:7], part)
    assert torch.equal(uniforms(seed, draw)[1:, 4:7], uniforms(seed[1:, 4:7], draw[1:]))
    assert not torch.equal(whole, statistics_of(logits, hot, seed=seed, draw=draw + 1).token)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), top_p=st.floats(0.05, 1.0))
def test_a_nucleus_is_the_likeliest_tokens(seed: int, top_p: float) -> None:
    """Sorted by probability, as many as it takes to go beyond top_p; the first always."""
    logits = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2
    order, total, kept = sorted(range(12), key=lambda i: -float(logits[i])), 0.0, []
    probabilities = logits.softmax(-1).tolist()
    for token in order:
        if total <= top_p:
            kept.append(token)
        total += probabilities[token]
    assert places(nucleus(logits, top_p)) == sorted(kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8), Sampling(0.8, top_k=5, scaled=True)])
@pytest.mark.parametrize("vocabulary", [17, 1300])
def test_both_backends_commit_the_same_tokens(vocabulary: int, sampling: Sampling, dtype: torch.dtype) -> None:
    """Every rule, ties included, at four stages of four rows."""
    draw = torch.Generator().manual_seed(vocabulary)
    bank = (torch.randn(8, vocabulary, generator=draw) * 4).to(dtype)
    logits = bank[torch.randint(8, (4, 12), generator=draw)]
    masked = torch.rand(4, 12, generator=draw) < 0.8
    where = Progress(torch.arange(4), 5, torch.arange(1, 5), torch.rand(4, generator=draw).double(), 0, 12)
    where = where._replace(uniform=torch.rand(4, 12, generator=draw))
    found = []
    for backend in ("torch", "triton"):
        with use_backend(backend):  # type: ignore[arg-type]
            found.append(statistics_of(logits, sampling, seed=torch.arange(48).reshape(4, 12), draw=where.step))
    assert torch.equal(found[0].token, found[1].token)
    for rule, _ in RULES.values():
        one, other = (rule.commit(statistics, masked, masked, where) for statistics in found)
        assert torch.equal(one, other)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_both_backends_write_the_same_text(temperature: float) -> None:
    model = slow.RandomModel(40, 30, seed=4)
    model.bank = model.bank.float()
    found = []
    for backend in ("torch", "triton"):
        with use_backend(backend):  # type: ignore[arg-type]
            tokens, ledger = fs.decode_masked(
                model, torch.tensor([[1, 2], [3, 4]]), rule=fs.Prophet((9.0, 5.0, 4.0), base=fs.Threshold(0.8)),
                gen_length=8, block_length=4, mask_token_id=39, temperature=temperature,
                generator=torch.Generator().manual_seed(5),
            )  # fmt: skip
        found.append((tokens.tolist(), ledger.committed_at.tolist()))
    assert found[0] == found[1]


def state(gap: list[float], masked: list[bool], **progress: Any) -> tuple[Statistics, Tensor, Progress]:
    """One row, whose rule sees only gaps and masks."""
    values = torch.tensor([gap], dtype=torch.float64)
    nothing = torch.zeros_like(values)
    where: dict[str, Any] = dict(
        step=torch.tensor([0]), steps=10, quota=torch.tensor([1]), share=torch.tensor([0.1]), first=0, length=len(gap)
    )
    return (
        Statistics(torch.zeros_like(values, dtype=torch.int64), nothing, nothing, nothing, values),
        torch.tensor([masked]),
        Progress(**{**where, **progress}),
    )


@pytest.mark.parametrize(
    ("step", "code", "paper"), [(2, 7.5, 7.5), (3, 5.0, 7.5), (5, 5.0, 5.0), (6, 2.5, 5.0), (7, 2.5, 2.5)]
)
def test_prophet_takes_the_threshold_of_its_phase(step: int, code: float, paper: float) -> None:
    """At 10 steps phases end at 3.3 and 6.7 steps: the code's count is one ahead of the paper's."""
    for progress, threshold in (("code", code), ("paper", paper)):
        rule = fs.Prophet(progress=progress)  # type: ignore[arg-type]
        for gap, expected in ((threshold, True), (threshold - 1e-9, False)):
            statistics, masked, where = state([gap] * 4, [True] * 4, step=torch.tensor([step]))
            assert bool(rule.exits(statistics, masked, where)) == expected


def test_prophet_reads_its_region_alone() -> None:
    statistics, masked, progress = state([0.0, 0.0, 9.0, 9.0, 9.0, 0.0], [True, True, False, True, True, True])
    assert not fs.Prophet().exits(statistics, masked, progress)
    assert fs.Prophet(region=(2, 3)).exits(statistics, masked, progress)
    assert not fs.Prophet(region=(1, 4)).exits(statistics, masked, progress)
    unread = progress._replace(readable=torch.tensor([[True, True, False, False, False, True]]))
    assert not fs.Prophet(region=(2, 3)).exits(statistics, masked, unread)  # nothing to go by
    chosen = fs.Prophet(region=(2, 3)).commit(statistics, masked, masked, progress)
    assert torch.equal(chosen, masked)


def test_prophet_after_a_separator() -> None:
    """The region moves with the separator, which may be a candidate; without one there is no exit."""
    statistics, masked, progress = state([0.0, 0.0, 0.0, 9.0, 9.0, 0.0], [True] * 6)
    rule = fs.Prophet(region=fs.After([4, 5], 2))
    text = torch.tensor([[1, 4, 5, 1, 1, 1]])
    decided = torch.tensor([[False, False, False, True, True, True]])
    assert rule.exits(statistics, decided, progress._replace(tokens=text))
    assert rule.exits(statistics._replace(token=text), masked, progress._replace(tokens=torch.zeros_like(text)))
    assert not rule.exits(statistics, masked, progress._replace(tokens=text))
    with pytest.raises(ValueError, match=r"progress.tokens = None"):
        rule.exits(statistics, masked, progress)


def test_after_is_the_positions_behind_the_first_separator() -> None:
    text = torch.tensor([[3, 4, 3, 4, 1, 1], [1, 1, 1, 3, 4, 2], [3, 3, 3, 3, 3, 4], [4, 3, 4, 4, 3, 4]])
    found = fs.After((3, 4), 2)(text, torch.ones_like(text, dtype=torch.bool))
    assert [places(row) for row in found] == [[2, 3], [5], [], [3, 4]]


def test_prophet_takes_what_lies_beyond_the_block() -> None:
    statistics, masked, progress = state([9.0] * 6, [False, True, True, True, True, True])
    eligible = masked & torch.tensor([[True, True, True, False, False, False]])
    assert torch.equal(fs.Prophet().commit(statistics, masked, eligible, progress), masked)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rows_are_judged_apart(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 9, 6, generator=draw, dtype=torch.float64) * 4
    masked = torch.rand(4, 9, generator=draw) < 0.6
    step, quota = torch.randint(9, (4,), generator=draw), torch.randint(1, 4, (4,), generator=draw)
    uniform = torch.rand(4, 9, generator=draw)

    def commit(rule: CommitRule, rows: slice) -> Tensor:
        progress = Progress(step[rows], 9, quota[rows], quota[rows] / 9, 0, 9, uniform=uniform[rows])
        return rule.commit(statistics_of(logits[rows]), masked[rows], masked[rows], progress)

    for rule, _ in RULES.values():
        together = commit(rule, slice(None))
        assert torch.equal(together, torch.cat([commit(rule, slice(i, i + 1)) for i in range(4)]))
        assert not (together & ~masked).any()


def test_random_rules_need_numbers() -> None:
    statistics, masked, progress = state([1.0, 1.0], [True, True])
    for rule in (fs.Random(), fs.Origin()):
        assert rule.random
        assert fs.Prophet(base=rule).random
        with pytest.raises(ValueError, match=r"progress.uniform = None"):
            rule.commit(statistics, masked, masked, progress)
    assert not fs.Prophet().random
