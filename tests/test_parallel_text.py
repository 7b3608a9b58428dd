"""Jacobi decoding: exactly what sequential decoding writes, in fewer passes."""

from __future__ import annotations

import string
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import (
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from fastsample.demo.causal.loading import load_causal_model
from fastsample.demo.language import sums
from fastsample.fixed_point.text import jacobi_decode


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, eos_token_id=None, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


PROMPTS = torch.tensor([[5, 7, 11, 2, 9], [0, 0, 3, 4, 8], [0, 1, 1, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])


def slow_decode(model: Any, tokens: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    """One row, one token after the other, without a cache."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        logits = model(input_ids=tokens[None]).logits[0, -1]
        if temperature:
            uniform = torch.rand(1, len(logits), generator=generator, dtype=torch.float64)[0]
            logits = logits / temperature - (-uniform.log()).log()
        tokens = torch.cat([tokens, logits.argmax()[None]])
    return tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("block", [1, 4, 7, 30])
@torch.no_grad()
def test_it_writes_what_sequential_decoding_writes(model: Any, block: int, temperature: float) -> None:
    """Left-padded rows, blocks that do not divide the length; no row depends on the others."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    found, report = jacobi_decode(
        model, PROMPTS, max_new_tokens=23, block_length=block, attention_mask=MASK, temperature=temperature,
        generator=generators,
    )  # fmt: skip
    for row in range(3):
        expected = slow_decode(model, PROMPTS[row][MASK[row].bool()], 23, temperature, seed=row)
        assert found[row, (MASK[row] == 0).sum() :].tolist() == expected.tolist()
    assert report.sweeps <= 23
    assert report.sweeps == 23 if block == 1 else report.sweeps >= 23 / block


def test_greedy_is_that_of_transformers(model: Any) -> None:
    expected = model.generate(PROMPTS[:1], max_new_tokens=20, do_sample=False)
    found, report = jacobi_decode(model, PROMPTS[:1], max_new_tokens=20)
    assert torch.equal(found, expected)
    assert report.sweeps < 20  # a small random model repeats itself


def test_rows_end_at_the_end_token(model: Any) -> None:
    free, _ = jacobi_decode(model, PROMPTS, max_new_tokens=24, attention_mask=MASK)
    stop = int(free[0, 5 + 6])
    found, report = jacobi_decode(
        model, PROMPTS, max_new_tokens=24, block_length=4, attention_mask=MASK, eos_token_id=stop, pad_token_id=49
    )
    for row, full in zip(found[:, 5:].tolist(), free[:, 5:].tolist(), strict=True):
        written = full[: full.index(stop) + 1] if stop in full else full
        assert row == written[: len(row)] + [49] * (len(row) - len(written))
    if all(stop in row for row in free[:, 5:].tolist()):
        assert report.sweeps < 24


def tiny(kind: Any, config: Any, **options: Any) -> Any:
    """A random model of 2 or more layers, sharp enough that greedy text does not repeat one token."""
    torch.manual_seed(0)
    return kind(config(vocab_size=50, bos_token_id=1, eos_token_id=None, pad_token_id=0, **options)).double().eval()


LLAMA_LIKE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.4,
}  # fmt: skip
GPT_LIKE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.4}


def opt(positions: int) -> Any:
    """Its table of positions has two more, before them."""
    return tiny(
        OPTForCausalLM, OPTConfig, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=positions, word_embed_proj_dim=32, init_std=0.4,
    )  # fmt: skip


SERVED: dict[str, Any] = {
    "sliding windows": lambda: tiny(MistralForCausalLM, MistralConfig, **LLAMA_LIKE, sliding_window=6),
    "windows in turn": lambda: tiny(Gemma2ForCausalLM, Gemma2Config, **LLAMA_LIKE, sliding_window=6),
    "beside an encoder of pictures": lambda: tiny(
        Gemma3ForConditionalGeneration, Gemma3Config, tie_word_embeddings=False,
        text_config={**LLAMA_LIKE, "vocab_size": 50, "sliding_window": 6, "query_pre_attn_scalar": 8},
        vision_config={
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4,
        },
    ),
    "learned positions": lambda: tiny(GPT2LMHeadModel, GPT2Config, **GPT_LIKE),
    "positions by the mask": lambda: opt(38),  # one less than there are tokens: the last one is not read
    "biases of distance": lambda: tiny(
        BloomForCausalLM, BloomConfig, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.4
    ),
    "a causal encoder": lambda: tiny(
        BertLMHeadModel, BertConfig, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.4, is_decoder=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SERVED)
def test_greedy_is_that_of_every_served_kind(name: str) -> None:
    """Past the window, with left padding (a mask or pad tokens), in blocks longer than the window and shorter."""
    model = SERVED[name]()
    tokens = torch.randint(2, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    tokens[0, :3] = 0
    mask = (tokens != 0).long()
    expected = model.generate(tokens, attention_mask=mask, max_new_tokens=30, do_sample=False)
    for block, given in ((5, mask), (16, None)):
        found, _ = jacobi_decode(model, tokens, max_new_tokens=30, block_length=block, attention_mask=given)
        assert torch.equal(found, expected), block


def configured(**settings: Any) -> Any:
    """A Llama with these in its generation config."""
    model = tiny(LlamaForCausalLM, LlamaConfig, **LLAMA_LIKE)
    vars(model.generation_config).update(settings)
    return model


REFUSED: dict[str, tuple[Any, str]] = {
    "Mamba": (lambda: tiny(MambaForCausalLM, MambaConfig, hidden_size=16, num_hidden_layers=2), "MambaForCausalLM"),
    "RWKV": (
        lambda: tiny(RwkvForCausalLM, RwkvConfig, hidden_size=16, num_hidden_layers=2),
        "RwkvForCausalLM has no key-value cache",
    ),
    "GPT-1": (
        lambda: tiny(OpenAIGPTLMHeadModel, OpenAIGPTConfig, n_embd=16, n_layer=2, n_head=2),
        "OpenAIGPTLMHeadModel has no key-value cache",
    ),
    "recurrent Gemma": (
        lambda: tiny(
            RecurrentGemmaForCausalLM, RecurrentGemmaConfig, hidden_size=16, num_hidden_layers=3, lru_width=16,
            intermediate_size=32, num_attention_heads=2, head_dim=8, attention_window_size=8,
        ),
        "RecurrentGemmaForCausalLM",
    ),
    "a hybrid": (
        lambda: tiny(
            JambaForCausalLM, JambaConfig, hidden_size=16, intermediate_size=16, num_hidden_layers=8,
            num_attention_heads=2, num_key_value_heads=2, use_mamba_kernels=False, num_experts=2,
        ),
        "JambaForCausalLM keeps a state",
    ),
    "a bidirectional encoder": (
        lambda: tiny(
            BertLMHeadModel, BertConfig, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        ),
        "attends to later tokens",
    ),
    "a forced last token": (
        lambda: BartForCausalLM(
            BartConfig(vocab_size=50, d_model=16, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=16)
        ).eval(),
        "forced_eos_token_id = 2",
    ),
    "angles that grow": (
        lambda: tiny(LlamaForCausalLM, LlamaConfig, **{**LLAMA_LIKE, "max_position_embeddings": 64},
                     rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        "dynamic angles, other ones after 64 positions",
    ),
    "angles of two kinds": (
        lambda: tiny(
            Phi3ForCausalLM, Phi3Config, **LLAMA_LIKE, original_max_position_embeddings=32, rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
                "original_max_position_embeddings": 32,
            },
        ),
        "longrope angles, other ones after 32 positions",
    ),
    "beams": (lambda: configured(num_beams=3), "generation_config.num_beams = 3"),
    "a penalty of prompts": (lambda: configured(encoder_repetition_penalty=1.2), "encoder_repetition_penalty = 1.2"),
    "stops of its own": (lambda: configured(stop_strings=["a"]), "needs the tokenizer"),
    "another kind of module": (lambda: torch.nn.Linear(2, 2), "Linear has no generate"),
    "a classifier": (
        lambda: LlamaForSequenceClassification(LlamaConfig(vocab_size=50, pad_token_id=0, **LLAMA_LIKE)),
        "LlamaForSequenceClassification has no generate",
    ),
    "a Llama without direction": (
        lambda: tiny(LlamaForCausalLM, LlamaConfig, **LLAMA_LIKE, is_causal=False), "attends to later tokens",
    ),
    "positions after two others": (lambda: opt(73), "knows 73 positions, for a text of 75"),
    "another table of positions": (
        lambda: tiny(GPTJForCausalLM, GPTJConfig, **GPT_LIKE, rotary_dim=8), "knows 64 positions",
    ),
    "too few positions": (lambda: tiny(GPT2LMHeadModel, GPT2Config, **GPT_LIKE), "knows 64 positions, for a text of"),
    "dropout": (lambda: tiny(GPT2LMHeadModel, GPT2Config, **GPT_LIKE).train(), "training mode"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_before_any_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, said = REFUSED[name]
    model = make()
    monkeypatch.setattr(type(model), "__call__", lambda *_, **__: pytest.fail("the model was called"))
    with pytest.raises(ValueError, match=said) as refusal:
        jacobi_decode(model, PROMPTS, max_new_tokens=70)
    assert "\n" not in str(refusal.value)


def test_logits_are_of_the_block_alone(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head sees no row of the prompt, and no row that has been written."""
    widths: list[int] = []
    forward = model.lm_head.forward

    def counted(hidden: Tensor) -> Tensor:
        widths.append(hidden.shape[1])
        return forward(hidden)

    monkeypatch.setattr(model.lm_head, "forward", counted)
    _, report = jacobi_decode(model, PROMPTS, max_new_tokens=20, block_length=6)
    assert len(widths) == report.sweeps
    assert max(widths) == 6


@pytest.mark.parametrize("block", [1, 4, 30])
def test_a_nucleus_is_sampled_as_by_the_sequential_loop(model: Any, block: int) -> None:
    def slow(row: int) -> list[int]:
        tokens, generator = PROMPTS[row][MASK[row].bool()], torch.Generator().manual_seed(row)
        for _ in range(15):
            logits = model(input_ids=tokens[None]).logits[0, -1].float() / 0.9
            order = logits.argsort(descending=True)
            before = logits.softmax(-1)[order].cumsum(0) - logits.softmax(-1)[order]
            allowed = order[before < 0.6]
            noise = -(-torch.rand(1, len(logits), generator=generator, dtype=torch.float64)[0].log()).log()
            tokens = torch.cat([tokens, allowed[(logits + noise)[allowed].argmax()][None]])
        return tokens.tolist()

    found, _ = jacobi_decode(
        model, PROMPTS, max_new_tokens=15, block_length=block, attention_mask=MASK, temperature=0.9, top_p=0.6,
        generator=[torch.Generator().manual_seed(row) for row in range(3)],
    )  # fmt: skip
    with torch.no_grad():
        for row in range(3):
            assert found[row, (MASK[row] == 0).sum() :].tolist() == slow(row)


def test_the_end_token_is_the_models_own_unless_another_is_given(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    free, _ = jacobi_decode(model, PROMPTS, max_new_tokens=24, attention_mask=MASK)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [int(free[0, 8]), int(free[1, 13])])
    monkeypatch.setattr(model.generation_config, "pad_token_id", 0)
    expected = model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=24, do_sample=False)
    found, _ = jacobi_decode(model, PROMPTS, max_new_tokens=24, attention_mask=MASK, block_length=7)
    assert torch.equal(found, expected)
    ignored, _ = jacobi_decode(model, PROMPTS, max_new_tokens=24, attention_mask=MASK, eos_token_id=[])
    assert torch.equal(ignored, free)


def test_stop_strings_end_rows_as_in_transformers(model: Any) -> None:
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation[:14]]
    inner = Tokenizer(WordLevel({letter: index for index, letter in enumerate(letters)}, unk_token="a"))
    inner.pre_tokenizer, inner.decoder = Split(Regex("."), behavior="isolated"), Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    small = tiny(LlamaForCausalLM, LlamaConfig, **LLAMA_LIKE)
    small.generation_config.eos_token_id = 49  # without one, transformers lets a row that has ended write on
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    free, _ = jacobi_decode(small, tokens, max_new_tokens=24)
    word = letters[free[0, 7]] + letters[free[0, 8]]
    expected = small.generate(
        tokens, max_new_tokens=24, do_sample=False, stop_strings=[word], tokenizer=tokenizer, pad_token_id=0
    )
    found, report = jacobi_decode(
        small, tokens, max_new_tokens=24, block_length=5, stop_strings=word, tokenizer=tokenizer, pad_token_id=0
    )
    assert torch.equal(found, expected)
    assert report.sweeps <= 24


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"max_new_tokens": 4, "block_length": 0}, "block_length = 0"),
        ({"max_new_tokens": 4, "temperature": -1.0}, "temperature = -1.0"),
        ({"max_new_tokens": 4, "temperature": float("nan")}, "temperature = nan"),
        ({"max_new_tokens": 4, "temperature": 1.0, "top_p": 0.0}, "top_p = 0.0"),
        ({"max_new_tokens": 4, "top_p": 0.5}, "top_p = 0.5 has no effect"),
        ({"max_new_tokens": 4, "stop_strings": ["a"]}, "needs the tokenizer"),
        ({"max_new_tokens": 4, "attention_mask": MASK[:, 1:]}, "attention_mask"),
        ({"max_new_tokens": 4, "attention_mask": MASK.flip(1)}, "pad prompts on the left"),
    ],
)
def test_wrong_arguments_are_refused(model: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        jacobi_decode(model, PROMPTS, **options)


@torch.no_grad()
def test_the_consistency_model_writes_the_sums_in_fewer_passes() -> None:
    """Greedy's own tokens, for both models; a right text from both, the second in less than half of the passes."""
    asked = [problem for problem, _ in zip(sums.problems(5, test=True), range(6), strict=False)]
    passes = {}
    for name in ("teacher", "consistency"):
        model, tokenizer = load_causal_model(name)
        passes[name] = 0
        for problem in asked:
            ids = tokenizer(problem.prompt, return_tensors="pt").input_ids
            found, report = jacobi_decode(model, ids, max_new_tokens=96, block_length=32)
            assert torch.equal(found, model.generate(ids, max_new_tokens=96, do_sample=False))
            _, whole = problem.judge("".join(tokenizer.convert_ids_to_tokens(found[0, ids.shape[1] :])))
            assert whole
            passes[name] += report.sweeps
    assert passes["consistency"] < passes["teacher"] / 3


def test_an_unknown_bundled_model_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of teacher, consistency"):
        load_causal_model("student")
