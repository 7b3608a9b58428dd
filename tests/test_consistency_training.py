"""The training of the bundled consistency model: it goes on from its checkpoints, and counts passes as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from fastsample.demo.causal.loading import load_causal_model
from fastsample.demo.language import sums
from fastsample.fixed_point.text import jacobi_decode


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`scripts/train_consistency.py` as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts")
    import train_consistency

    return train_consistency


def test_both_stages_write_models_and_go_on_from_their_checkpoints(script: Any, tmp_path: Path) -> None:
    script.train("teacher", tmp_path, 0, "cpu", 2, 4, 0)
    script.train("consistency", tmp_path, 0, "cpu", 2, 4, 0)
    first = LlamaForCausalLM.from_pretrained(tmp_path / "consistency").state_dict()
    script.train("consistency", tmp_path, 0, "cpu", 2, 4, 0)  # nothing is left to do, and nothing is lost
    script.train("consistency", tmp_path, 0, "cpu", 3, 4, 0)
    last = LlamaForCausalLM.from_pretrained(tmp_path / "consistency").state_dict()
    assert torch.load(tmp_path / "consistency.pt", weights_only=True)["step"] == 3
    assert any(not torch.equal(first[name], last[name]) for name in first)


@torch.no_grad()
def test_passes_are_those_of_jacobi_decoding(script: Any) -> None:
    """The count of many rows at once, against the decoder on each alone."""
    model, tokenizer = load_causal_model("consistency")
    asked = [problem for problem, _ in zip(sums.problems(1, test=True), range(3), strict=False)]
    taken = 0
    for problem in asked:
        ids = tokenizer(problem.prompt, return_tensors="pt").input_ids
        _, report = jacobi_decode(model, ids, max_new_tokens=sums.RESPONSE_LENGTH, block_length=32)
        taken += report.sweeps
    found = script.report(model, 3, 32)
    assert found["answers"] == 1.0
    assert found["passes"] == pytest.approx(taken / 3, abs=0.01)
