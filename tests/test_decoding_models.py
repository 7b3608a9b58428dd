"""Decoding with models of transformers: families, left padding, embeddings, key-value caches, rows of the head."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import decoding_models
import pytest
import slow_decoding as slow
import torch
from decoding_models import MASK, albert, bert, bundled_kind, modern_bert, roberta
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import fastsample as fs
from fastsample.decoding import Adapter, CommitRule, adapter_of
from fastsample.decoding.adapters import DREAM, LLADA, dream

PROMPTS = torch.tensor([[5, 7, 11, 2, 9], [0, 0, 3, 4, 8], [0, 1, 1, 6, 1]])
PADDING = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
OPTIONS: dict[str, Any] = dict(gen_length=16, block_length=8, mask_token_id=MASK)


def decode(model: Any, rule: CommitRule, **options: Any) -> tuple[Tensor, Any]:
    return fs.decode_masked(model, PROMPTS, rule=rule, attention_mask=PADDING, **{**OPTIONS, **options})


@pytest.mark.parametrize("kind", [bundled_kind, bert, modern_bert, roberta])
@pytest.mark.parametrize("guidance", [0.0, 0.7])
def test_padded_rows_are_those_of_a_slow_decoder(kind: Any, guidance: float) -> None:
    model = kind()

    def logits_of(text: list[int]) -> list[list[float]]:
        return model(torch.tensor([text])).logits[0].tolist()

    found, ledger = decode(model, fs.Threshold(0.5), guidance_scale=guidance, eos_token_id=3)
    for row in range(3):
        prompt = PROMPTS[row][PADDING[row] == 1].tolist()
        expected, committed_at, forwards = slow.slow_decode(
            logits_of, prompt, rule=slow.threshold(0.5), gen_length=16, block_length=8, steps=16, mask=MASK,
            guidance=guidance, ends=[3],
        )  # fmt: skip
        assert found[row, 5:].tolist() == expected
        assert ledger.committed_at[row].tolist() == committed_at
        assert ledger.row_forwards[row] == forwards


def test_the_head_runs_on_what_is_read() -> None:
    """A block's rows; with Prophet the response's; never the prompt's."""
    model = bundled_kind()
    rows: list[int] = []
    model.head.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    fs.decode_masked(model, PROMPTS[:1], rule=fs.LowConfidence(), **OPTIONS)
    assert set(rows) == {8}
    rows.clear()
    fs.decode_masked(model, PROMPTS[:1], rule=fs.Prophet((99.0, 99.0, 99.0)), **OPTIONS)
    assert set(rows) == {16}


class Early(torch.nn.Module):
    """A model whose logits stand one position early, and that is asked for the last `num_logits_to_keep`: Dream's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.masks, self.kept = model, [], []

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, num_logits_to_keep: int = 0
    ) -> Any:
        self.masks.append(attention_mask)
        self.kept.append(num_logits_to_keep)
        seen = None if isinstance(attention_mask, str) else attention_mask
        logits = self.model(input_ids, attention_mask=seen, position_ids=position_ids).logits
        return SimpleNamespace(logits=torch.cat([logits[:, 1:], logits[:, :1]], 1)[:, -num_logits_to_keep:])


def test_dream_is_called_as_dream_is() -> None:
    """Shifted logits, "full" or a square mask with positions, the last rows alone: the text is the same."""
    model = bundled_kind()
    family = Adapter(dream, shifted=True, keeps="num_logits_to_keep", schedule="dream", scaled=True)
    for ids, mask in ((PROMPTS, PADDING), (PROMPTS[:1], None)):
        options: dict[str, Any] = dict(rule=fs.Entropy(), attention_mask=mask, steps=8, **OPTIONS)
        expected, _ = fs.decode_masked(model, ids, schedule="dream", **options)
        early = Early(model)
        found, _ = fs.decode_masked(early, ids, adapter=family, **options)
        assert torch.equal(found, expected)
        assert set(early.kept) == {17, 9}  # from the position before the block
        if mask is None:
            assert set(early.masks) == {"full"}
        else:
            assert early.masks[0].shape == (3, 1, 21, 21)


def test_adapters_come_from_the_family_or_the_signature() -> None:
    assert adapter_of(bundled_kind()).caches
    assert adapter_of(bundled_kind()).keeps == "logits_to_keep"
    plain = adapter_of(bert())
    assert (plain.embeds, plain.keeps, plain.caches, plain.shifted) == (True, None, False, False)
    assert adapter_of(lambda input_ids, attention_mask: None) == Adapter()
    assert adapter_of(Early(None)).keeps == "num_logits_to_keep"
    for name, family in (("llada", LLADA), ("Dream", DREAM)):
        model = bert()
        model.config.model_type = name
        assert adapter_of(model) == family


def llama(seed: int = 0) -> Any:
    """Bidirectional, with rotary positions and fewer heads of keys than of queries."""
    config = LlamaConfig(
        vocab_size=decoding_models.VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, is_causal=False,
    )  # fmt: skip
    return decoding_models.widened(LlamaForCausalLM(config), seed)


CACHING = [bundled_kind, bert, llama, albert]
"""Its own cache; transformers' attention interface, with learned and with rotary positions, with shared layers."""


@pytest.mark.parametrize("guidance", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("make", [*CACHING, roberta])
def test_a_cache_renewed_each_forward_changes_nothing(make: Any, kind: Any, guidance: float) -> None:
    model, rule = make(), fs.Threshold(0.5)
    expected, without = decode(model, rule, guidance_scale=guidance)
    found, ledger = decode(model, rule, guidance_scale=guidance, cache=fs.Caching(kind, refresh=1))
    assert torch.equal(found, expected)
    assert torch.equal(ledger.committed_at, without.committed_at)


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("make", [*CACHING, roberta])
def test_a_cached_row_does_not_depend_on_its_batch(make: Any, kind: Any) -> None:
    """Rows come to a new block, and renew the cache, at different forwards."""
    model, rule = make(), fs.Threshold(0.5)
    for cache in (fs.Caching(kind), fs.Caching(kind, refresh=3)):
        found, ledger = decode(model, rule, cache=cache, guidance_scale=0.5)
        assert len(set(ledger.row_forwards)) > 1
        for row in range(3):
            own = PROMPTS[row : row + 1, PADDING[row] == 1]
            alone, _ = fs.decode_masked(model, own, rule=rule, cache=cache, guidance_scale=0.5, **OPTIONS)
            assert torch.equal(alone[0, -16:], found[row, 5:])


def frozen_logits(model: Any, old: Tensor, new: Tensor, window: range) -> Tensor:
    """Logits of `new` [L] in the window, all else being as it was in `old`: both texts in one, by masks alone."""
    length, places = len(old), torch.tensor(window)
    text = torch.cat([old, new[places]])[None]
    visible = torch.zeros(len(text[0]), len(text[0]), dtype=torch.bool)
    visible[:length, :length] = True
    visible[length:, length:] = True
    visible[length:, [i for i in range(length) if i not in window]] = True
    positions = torch.cat([torch.arange(length), places])[None]
    hidden = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -1e30)[None, None]
    return model(text, attention_mask=hidden, position_ids=positions).logits[0, length:]


@pytest.mark.parametrize("kind", ["prefix", "dual"])
@pytest.mark.parametrize("make", CACHING)
def test_what_a_cache_keeps_is_of_the_blocks_first_forward(make: Any, kind: Any) -> None:
    """Fast-dLLM: later forwards of a block see what is outside their window as it was at the first."""
    model, prompt = make(3), PROMPTS[0]
    before = model.config._attn_implementation
    text = torch.cat([prompt, torch.full((16,), MASK)])
    for block in (0, 1):
        begin = 5 + 8 * block
        window, old = range(begin, begin + 8 if kind == "dual" else 21), text.clone()
        for step in range(8):
            seen = model(text[None]).logits[0, window] if step == 0 else frozen_logits(model, old, text, window)
            logits = seen[:8].clone()
            logits[:, MASK] = -torch.inf
            confidence, token = logits.softmax(-1).max(-1)
            undecided = text[begin : begin + 8] == MASK
            best = int(torch.where(undecided, confidence, -1.0).argmax())
            text[begin + best] = token[best]
    found, _ = fs.decode_masked(model, prompt[None], rule=fs.LowConfidence(), cache=fs.Caching(kind), **OPTIONS)
    assert torch.equal(found[0], text)
    assert model.config._attn_implementation == before
    exact, _ = fs.decode_masked(model, prompt[None], rule=fs.LowConfidence(), **OPTIONS)
    assert not torch.equal(found, exact)  # an approximation, and one that shows here


def test_a_cache_spares_positions() -> None:
    """Evaluated positions: all at the first forward of a block, then the block and what follows, or the block."""
    model = bundled_kind()
    widths: list[int] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    for cache, expected in ((None, {21}), ("prefix", {21, 16, 8}), ("dual", {21, 8})):
        widths.clear()
        fs.decode_masked(model, PROMPTS[:1], rule=fs.LowConfidence(), cache=cache, **OPTIONS)  # type: ignore[arg-type]
        assert set(widths) == expected
        assert widths.count(21) == (16 if cache is None else 2)


def test_prophet_with_a_prefix_cache_reads_what_is_evaluated() -> None:
    """An exit in the second forward takes the response; a region that is all decided is no reason to exit."""
    model = bundled_kind()
    eager = fs.Prophet((0.0, 0.0, 0.0))
    _, ledger = decode(model, eager, cache="prefix")
    assert ledger.row_forwards == [1, 1, 1]
    behind = fs.Prophet((0.0, 0.0, 0.0), region=(0, 8), phases=(0.5, 0.5))
    late = fs.Prophet((99.0, 99.0, 0.0), region=(0, 8), phases=(0.5, 0.55))
    assert decode(model, behind, cache="prefix")[1].row_forwards == [1, 1, 1]
    _, ledger = decode(model, late, cache="prefix")
    assert ledger.row_forwards == [9, 9, 9]  # the first of the second block is a whole one, and reads the region


def test_float32_and_bfloat16_models_decode() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found, _ = decode(bundled_kind().to(dtype), fs.Prophet((6.0, 4.0, 2.0), base=fs.Threshold(0.5)))
        assert not (found == MASK).any()


def test_the_models_vary() -> None:
    """What the tests above stand on: texts of many tokens, different for each row and each seed."""
    for kind in (bundled_kind, bert, modern_bert):
        texts = [decode(kind(seed), fs.LowConfidence())[0][:, 5:] for seed in (0, 1)]
        assert all(len(row.unique()) >= 2 for text in texts for row in text)
        assert not torch.equal(texts[0], texts[1])
    assert decoding_models.VOCABULARY == MASK + 1


@pytest.mark.parametrize("make", CACHING)
@pytest.mark.parametrize("width", [8, 4])
def test_tokens_of_a_block_causal_model_see_no_later_block(make: Any, width: int) -> None:
    """The mask written out entry by entry, a row at a time; caches of what stands before are then exact."""
    model = make()
    adapter = replace(adapter_of(model), blocks=width)

    def logits_of(text: list[int]) -> list[list[float]]:
        size, prompt = len(text), len(text) - 16
        hidden = torch.zeros(1, 1, size, size, dtype=torch.float64)
        for query in range(size):
            for key in range(size):
                if math.floor((key - prompt) / width) > math.floor((query - prompt) / width):
                    hidden[0, 0, query, key] = -1e30
        places = torch.arange(size)[None]
        logits: list[list[float]] = model(
            torch.tensor([text]), attention_mask=hidden, position_ids=places
        ).logits[0].tolist()  # fmt: skip
        return logits

    options: dict[str, Any] = dict(adapter=adapter, block_length=width)
    found, ledger = decode(model, fs.Threshold(0.5), **options)
    for row in range(3):
        prompt = PROMPTS[row][PADDING[row] == 1].tolist()
        expected, committed_at, _ = slow.slow_decode(
            logits_of, prompt, rule=slow.threshold(0.5), gen_length=16, block_length=width, steps=16, mask=MASK
        )
        assert found[row, 5:].tolist() == expected
        assert ledger.committed_at[row].tolist() == committed_at
    every, _ = decode(model, fs.Threshold(0.5), block_length=width)
    assert not torch.equal(every, found)
    cached, _ = decode(model, fs.Threshold(0.5), cache="prefix", **options)
    assert torch.equal(cached, found)
    checked, _ = decode(model, fs.Checked(base=fs.Threshold(0.5)), **options)
    assert not (checked == MASK).any()
