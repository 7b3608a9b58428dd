"""Wrong input of decoding is refused in one line that names the argument and its value, before any forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import slow_decoding as slow
import torch
from decoding_models import MASK, bert, bundled_kind, modern_bert, roberta
from refusal import check_refused
from transformers import (
    EsmConfig,
    EsmForMaskedLM,
    FNetConfig,
    FNetForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import fastsample as fs
from fastsample.decoding import Adapter, Sampling

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])
SMALL: dict[str, Any] = dict(
    vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
)


def decode(ids: Any = IDS, **options: Any) -> Callable[[], object]:
    def call() -> object:
        model = bundled_kind()

        def stop(*_: Any) -> None:
            raise AssertionError("a forward")

        model.register_forward_pre_hook(stop)
        return fs.decode_masked(
            model, ids, **{**dict(rule=fs.LowConfidence(), gen_length=8, mask_token_id=MASK), **options}
        )

    return call


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )


def decode_by(model: Any, **options: Any) -> Callable[[], object]:
    return lambda: fs.decode_masked(
        model, IDS, **{**dict(rule=fs.LowConfidence(), gen_length=8, mask_token_id=MASK), **options}
    )


CASES: list[tuple[Callable[[], object], str]] = [
    # lengths
    (decode(gen_length=0), "gen_length = 0"),
    (decode(block_length=0), "block_length = 0"),
    (decode(steps=0), "steps = 0"),
    (decode(block_length=2, steps=6), "steps = 6 with 4 blocks"),
    # the mask token
    (decode(mask_token_id=None), "mask_token_id = None"),
    (decode(mask_token_id=-1), "mask_token_id = -1"),
    # prompts
    (decode(IDS[0]), "input_ids is torch.int64 (3,)"),
    (decode(IDS.float()), "input_ids is torch.float32"),
    (decode(attention_mask=torch.ones(2, 4)), "attention_mask has shape (2, 4)"),
    (decode(attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]])), "pad prompts on the left"),
    # sampling
    (decode(temperature=-0.1), "temperature = -0.1"),
    (decode(temperature=float("nan")), "temperature = nan"),
    (decode(top_p=0.0), "top_p = 0.0"),
    (decode(top_p=1.1), "top_p = 1.1"),
    (decode(top_k=0), "top_k = 0"),
    (decode(guidance_scale=-1.0), "guidance_scale = -1.0"),
    (decode(temperature=1.0, generator=[torch.Generator()]), "generator has 1 entry for a batch of 2"),
    # rules
    (decode(rule="low_confidence"), "rule = 'low_confidence'"),
    (decode(schedule="cosine"), "schedule = 'cosine'"),
    (lambda: fs.Threshold(0.0), "confidence = 0.0"),
    (lambda: fs.Threshold(1.5), "confidence = 1.5"),
    (lambda: fs.Factor(0.0), "factor = 0.0"),
    (lambda: fs.EntropyBounded(-0.1), "gamma = -0.1"),
    (lambda: fs.Hierarchy(least=2.0), "least = 2.0"),
    (lambda: fs.Prophet((2.5, 5.0, 7.5)), "thresholds = (2.5, 5.0, 7.5)"),
    (lambda: fs.Prophet((7.5, 5.0)), "thresholds = (7.5, 5.0): give 3"),
    (lambda: fs.Prophet((7.5, float("nan"), 2.5)), "thresholds = (7.5, nan, 2.5)"),
    (lambda: fs.Prophet(phases=(0.7, 0.3)), "phases = (0.7, 0.3)"),
    (lambda: fs.Prophet(progress="share"), "progress = 'share'"),  # type: ignore[arg-type]
    (lambda: fs.Prophet(region=(-1, 3)), "region = (-1, 3)"),
    (lambda: fs.Prophet(region=(2, 0)), "region = (2, 0)"),
    (lambda: fs.Prophet(region=[2, 3]), "region = [2, 3]"),  # type: ignore[arg-type]
    (decode(rule=fs.Prophet(region=(6, 3))), "region = (6, 3) ends outside the response of 8 tokens"),
    (decode(rule=fs.Prophet(base=fs.Prophet(region=(8, 1)))), "region = (8, 1) ends outside"),
    (lambda: fs.After([], 3), "separator = ()"),
    (lambda: fs.After([1], 0), "length = 0"),
    # constraints
    (decode(constraints={8: 1}), "constraints at position 8"),
    (decode(constraints={-1: 1}), "constraints at position -1"),
    (decode(constraints={0: MASK}), f"token {MASK} at position 0"),
    (decode(constraints=[{0: 1}]), "constraints has 1 mappings for 2 rows"),
    # caches and refinement
    (decode(cache="both"), "cache = 'both'"),
    (lambda: fs.Caching("dual", refresh=0), "refresh = 0"),
    (decode(cache="dual", rule=fs.Prophet()), 'cache = "dual" evaluates a block alone'),
    (decode_by(modern_bert(), cache="prefix"), "model = ModernBertForMaskedLM has no key-value cache"),
    (decode_by(slow.RandomModel(24, 3, 0), cache="dual"), "model = RandomModel has no key-value cache"),
    (decode_by(slow.RandomModel(24, 3, 0), adapter=Adapter(blocks=4)), "blocks = 4 of the adapter"),
    # the context
    (decode(gen_length=62), "gen_length = 62 after a prompt of 3 tokens: the model takes 64"),
    (decode_by(bert(), gen_length=100), "gen_length = 100 after a prompt of 3 tokens: the model takes 64"),
    (decode_by(roberta(), gen_length=59), "gen_length = 59 after a prompt of 3 tokens: the model takes 61"),
    # masks of four dimensions
    (
        decode_by(EsmForMaskedLM(EsmConfig(**SMALL)), rule=fs.Checked()),
        "EsmForMaskedLM shifts its logits or takes no 4-D",
    ),
    (
        decode_by(FNetForMaskedLM(FNetConfig(**SMALL)), rule=fs.WINO()),
        "FNetForMaskedLM shifts its logits or takes no 4-D",
    ),
    (decode_by(slow.RandomModel(24, 3, 0), refinement=fs.LatentRefinement()), "RandomModel takes no inputs_embeds"),
    (lambda: fs.LatentRefinement(mixing=1.2), "mixing = 1.2"),
    (lambda: fs.LatentRefinement(top_p=0.0), "top_p = 0.0"),
    (lambda: fs.LatentRefinement(refine_steps=-1), "refine_steps = -1"),
    (lambda: fs.LatentRefinement(refined=float("nan")), "refined = nan"),
    # causal models
    (decode_by(llama()), "model = LlamaForCausalLM is causal"),
    (
        decode_by(GPT2LMHeadModel(GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=1))),
        "GPT2LMHeadModel is causal",
    ),
    (lambda: fs.MaskedDiffusionPipeline(llama()), "model = LlamaForCausalLM is causal"),
    (lambda: Sampling(float("inf")), "temperature = inf"),
]


@pytest.mark.parametrize(("call", "words"), CASES, ids=[words for _, words in CASES])
def test_wrong_input_is_one_line(call: Callable[[], object], words: str) -> None:
    check_refused(call, words)


def test_right_input_comes_to_a_forward() -> None:
    with pytest.raises(AssertionError, match="a forward"):
        decode()()


def test_a_bidirectional_model_of_a_causal_class_is_fine() -> None:
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        is_causal=False,
    )
    found, _ = fs.decode_masked(
        LlamaForCausalLM(config).eval(), IDS, rule=fs.LowConfidence(), gen_length=4, mask_token_id=MASK
    )
    assert not (found == MASK).any()
