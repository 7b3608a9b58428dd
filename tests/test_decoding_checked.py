"""Drafts that are looked at again: equal to a slow decoder in both forms, whatever the batch, blocks or padding."""

from __future__ import annotations

from typing import Any

import pytest
import slow_decoding as slow
import torch
from decoding_models import MASK, bert, bundled_kind
from refusal import check_refused
from torch import Tensor

import fastsample as fs
from fastsample.decoding import Commit, CommitRule

LENGTH = 12


def read_by(model: Any, prompt: list[int], mask: int) -> Any:
    """A response's positions by the plain model."""

    def read(response: list[int]) -> list[slow.Position]:
        tokens = torch.tensor([prompt + response])
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, len(prompt) :].tolist()
        for row in logits:
            row[mask] = -torch.inf
        return [slow.Position(row) for row in logits]

    return read


def look_by_rows(model: Any, prompt: list[int], mask: int) -> Any:
    """All that is looked at masked together in a second text."""
    read = read_by(model, prompt, mask)

    def look(response: list[int], places: list[int]) -> dict[int, float]:
        at = read([mask if i in places else token for i, token in enumerate(response)]) if places else []
        return {i: at[i].probabilities[response[i]] for i in places}

    return look


def look_by_shadows(model: Any, prompt: list[int], mask: int, block: int | None = None) -> Any:
    """A mask token behind the text for each: the 4-D mask written out, one entry after the other.

    With `block`, as WINO: the whole block has shadows, which see each other.
    """

    def look(response: list[int], places: list[int]) -> dict[int, float]:
        if not places:
            return {}
        shadowed = places
        if block is not None:
            start = places[0] // block * block
            shadowed = list(range(start, min(start + block, len(response))))
        at, length = [len(prompt) + i for i in shadowed], len(prompt) + len(response)
        size = length + len(at)
        visible = torch.zeros(1, 1, size, size, dtype=torch.bool)
        for query in range(size):
            for key in range(size):
                if query < length:
                    visible[0, 0, query, key] = key < length
                elif key < length:
                    visible[0, 0, query, key] = key != at[query - length]
                else:
                    visible[0, 0, query, key] = key == query or block is not None
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([prompt + response + [mask] * len(at)]),
                attention_mask=visible,
                position_ids=torch.tensor([[*range(length), *at]]),
            ).logits[0, length:]
        logits[:, mask] = -torch.inf
        probabilities = dict(zip(shadowed, logits.softmax(-1), strict=True))
        return {i: float(probabilities[i][response[i]]) for i in places}

    return look


def batch_of(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    return (
        torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts]),
        torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]),
    )


PROMPTS = [[1, 5, 2, 7], [3], [8, 8, 6], [4, 4], [9, 1, 2], [7, 6, 5, 4]]


def compare(model: Any, fast: CommitRule, mask: int, block: int, look: Any, **policy: Any) -> int:
    """Tokens, the forward of each commit and the forwards of each row; how many commits were taken back."""
    ids, attention = batch_of(PROMPTS)
    stream: list[Commit] = []
    found, ledger = fs.decode_masked(
        model, ids, rule=fast, gen_length=LENGTH, block_length=block, mask_token_id=mask, attention_mask=attention,
        stream=stream.extend,
    )  # fmt: skip
    for row, prompt in enumerate(PROMPTS):
        expected, committed_at, forwards = slow.slow_checked(
            read_by(model, prompt, mask), look(model, prompt, mask), gen_length=LENGTH, block_length=block, mask=mask,
            **policy,
        )  # fmt: skip
        assert found[row, ids.shape[1] :].tolist() == expected
        assert ledger.committed_at[row].tolist() == committed_at
        assert ledger.row_forwards[row] == forwards
        last = {commit.position: commit.token for commit in stream if commit.row == row}
        assert [last[i] for i in range(LENGTH)] == expected
    return sum(commit.token == mask for commit in stream)


@pytest.mark.parametrize("block", [12, 5])
@pytest.mark.parametrize("seed", range(4))
def test_checked_by_rows_is_its_definition(seed: int, block: int) -> None:
    model = slow.RandomModel(9, 40, seed, spread=4.0)
    rule = fs.Checked(0.97, 0.6, 2, "rows", fs.Threshold(0.6))
    back = compare(model, rule, 8, block, look_by_rows, rule=slow.threshold(0.6), **slow.checked_policy(0.97, 0.6, 2))
    assert back > 0


@pytest.mark.parametrize("block", [12, 5])
@pytest.mark.parametrize("seed", range(3))
def test_checked_by_shadows_is_its_definition(seed: int, block: int) -> None:
    rule = fs.Checked(0.99, 0.5, 1, base=fs.Factor(1.0))
    back = compare(
        bundled_kind(seed), rule, MASK, block, look_by_shadows, rule=slow.factor(1.0),
        **slow.checked_policy(0.99, 0.5, 1),
    )  # fmt: skip
    assert back > 0


def test_shadows_in_a_model_of_transformers() -> None:
    """The 4-D mask is added to the scores there."""
    rule, model = fs.Checked(0.99, 0.5, base=fs.Factor(1.0)), bert(1)

    def added(**call: Any) -> Any:
        if call["attention_mask"].ndim == 4:
            call["attention_mask"] = torch.zeros(()).double().where(call["attention_mask"], -1e300)
        return model(**call)

    policy = slow.checked_policy(0.99, 0.5, 2)
    prompts = batch_of(PROMPTS[:2])
    found, _ = fs.decode_masked(
        model, prompts[0], rule=rule, gen_length=LENGTH, mask_token_id=MASK, attention_mask=prompts[1]
    )
    for row, prompt in enumerate(PROMPTS[:2]):
        expected, _, _ = slow.slow_checked(
            read_by(added, prompt, MASK), look_by_shadows(added, prompt, MASK), rule=slow.factor(1.0),
            gen_length=LENGTH, block_length=LENGTH, mask=MASK, **policy,
        )  # fmt: skip
        assert found[row, 4:].tolist() == expected


@pytest.mark.parametrize("block", [12, 5])
@pytest.mark.parametrize("seed", range(3))
def test_wino_is_its_definition(seed: int, block: int) -> None:
    """The authors' shadows: of the whole block, seeing each other."""

    def look(model: Any, prompt: list[int], mask: int) -> Any:
        return look_by_shadows(model, prompt, mask, block)

    policy = slow.wino_policy(0.5)
    back = compare(bundled_kind(seed), fs.WINO(0.3, 0.5), MASK, block, look, rule=slow.wino(0.3), **policy)
    assert back > 0 or block == 5  # of so few, all are drafted at once
    by_rows = slow.RandomModel(9, 40, seed, spread=4.0)
    compare(by_rows, fs.WINO(0.5, 0.6, "rows"), 8, block, look_by_rows, rule=slow.wino(0.5), **slow.wino_policy(0.6))


@pytest.mark.parametrize("block", [12, 5])
def test_credit_is_its_definition(block: int) -> None:
    model = slow.RandomModel(9, 30, 3, spread=1.5)
    ids, attention = batch_of(PROMPTS)
    rule = fs.Credit(0.75, weight=1.5)
    found, ledger = fs.decode_masked(
        model, ids, rule=rule, gen_length=LENGTH, block_length=block, mask_token_id=8, attention_mask=attention
    )
    plain, _ = fs.decode_masked(
        model, ids, rule=fs.Threshold(0.75), gen_length=LENGTH, block_length=block, mask_token_id=8,
        attention_mask=attention,
    )  # fmt: skip
    assert not torch.equal(found, plain)
    for row, prompt in enumerate(PROMPTS):

        def logits_of(text: list[int]) -> list[list[float]]:
            tokens = torch.tensor([text])
            return model(tokens, torch.ones_like(tokens)).logits[0].tolist()  # type: ignore[no-any-return]

        expected, committed_at, forwards = slow.slow_credit(
            logits_of, prompt, sure=0.75, weight=1.5, boost=0.2, decay=0.8, gen_length=LENGTH, block_length=block,
            mask=8,
        )  # fmt: skip
        assert found[row, ids.shape[1] :].tolist() == expected
        assert ledger.committed_at[row].tolist() == committed_at
        assert ledger.row_forwards[row] == forwards


def test_a_shadow_is_one_more_token_and_a_second_row_one_more_row() -> None:
    """What is evaluated beside the text itself, by the ledger; with guidance twice."""
    model, ids = bundled_kind(1), torch.tensor([[1, 2, 3]])
    sizes: list[int] = []
    model.register_forward_pre_hook(
        lambda _, args, call: sizes.append(args[0].numel()), with_kwargs=True  # type: ignore[func-returns-value]
    )  # fmt: skip
    for form in ("shadows", "rows"):
        for guidance in (0.0, 0.5):
            rule = fs.Checked(1.0, 0.5, form=form, base=fs.Threshold(0.3))  # type: ignore[arg-type]
            sizes.clear()
            _, ledger = fs.decode_masked(
                model, ids, rule=rule, gen_length=LENGTH, mask_token_id=MASK, guidance_scale=guidance
            )
            branches = 2 if guidance else 1
            assert ledger.positions == sum(sizes)
            assert ledger.positions > ledger.forward_calls * 15 * branches
            assert (ledger.rows > ledger.forward_calls * branches) == (form == "rows")


def test_no_returns_is_the_base() -> None:
    model, (ids, attention) = bundled_kind(2), batch_of(PROMPTS)
    options: dict[str, Any] = dict(gen_length=LENGTH, mask_token_id=MASK, attention_mask=attention)
    expected, plain = fs.decode_masked(model, ids, rule=fs.Threshold(0.4), **options)
    found, ledger = fs.decode_masked(model, ids, rule=fs.Checked(returns=0, base=fs.Threshold(0.4)), **options)
    assert torch.equal(found, expected)
    assert ledger.positions == plain.positions


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fs.Checked(certain=1.5), "certain = 1.5"),
        (lambda: fs.Checked(support=0.0), "support = 0.0"),
        (lambda: fs.Checked(returns=-1), "returns = -1"),
        (lambda: fs.Checked(form="both"), "form = 'both'"),  # type: ignore[arg-type]
        (lambda: fs.Checked(base=fs.WINO()), "base = WINO cannot stand inside Checked"),
        (lambda: fs.Prophet(base=fs.Checked()), "base = Checked cannot stand inside Prophet"),
        (lambda: fs.WINO(threshold=0.0), "threshold = 0.0"),
        (lambda: fs.Risk(-0.1), "budget = -0.1"),
        (lambda: fs.KLASS(kl=0.0), "kl = 0.0"),
        (lambda: fs.KLASS(history=0), "history = 0"),
        (lambda: fs.Credit(decay=1.1), "decay = 1.1"),
        (lambda: fs.PUNT(-1.0), "epsilon = -1.0"),
        (lambda: fs.Entropy(-0.5), "alg_temp = -0.5"),
    ],
)
def test_options_out_of_range_are_refused(call: Any, words: str) -> None:
    check_refused(call, words)


def test_what_checks_cannot_go_with_is_refused_before_a_forward() -> None:
    calls: list[int] = []

    def plain(input_ids: Tensor, attention_mask: Tensor) -> Any:
        calls.append(1)

    options: dict[str, Any] = dict(rule=fs.Checked(), gen_length=8, mask_token_id=MASK)
    ids = torch.tensor([[1, 2]])
    check_refused(lambda: fs.decode_masked(plain, ids, **options), 'form = "rows"')
    assert calls == []
    model = bundled_kind()
    check_refused(lambda: fs.decode_masked(model, ids, **options, cache="prefix"), "cache = ")
    check_refused(lambda: fs.decode_masked(model, ids, **options, refinement=fs.LatentRefinement()), "refinement = ")
    probing = {**options, "rule": fs.PUNT()}
    check_refused(lambda: fs.decode_masked(model, ids, **probing, cache="dual"), "PUNT probes whole texts")
