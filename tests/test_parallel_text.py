"""Jacobi decoding: exactly what sequential decoding writes, in fewer passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
        ({"max_new_tokens": 4, "block_length": 0}, "block_length = 0"),
        ({"max_new_tokens": 4, "temperature": -1.0}, "temperature = -1.0"),
        ({"max_new_tokens": 4, "attention_mask": MASK.flip(1)}, "pad prompts on the left"),
    ],
)
def test_wrong_arguments_are_refused(model: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        jacobi_decode(model, PROMPTS, **options)
