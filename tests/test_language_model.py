"""The bundled language model: loads offline by transformers, is small, adds, and runs in LLaDA2Pipeline."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from transformers import AutoModelForMaskedLM, AutoTokenizer

import fastsample
from fastsample.bench.decoding import judged
from fastsample.demo.language import sums
from fastsample.demo.language.loading import load_language_model, model_path
from fastsample.demo.language.model import MaskedDiffusionLM
from fastsample.demo.language.sums import Sum, problems

ROOT = Path(__file__).parents[1]
EXAMPLE = Sum((123, 45, 678, 901, 234))
FOLDER_FILES = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "training.json"}


def test_a_problem_and_its_text() -> None:
    assert EXAMPLE.prompt == "123+045+678+901+234="
    assert EXAMPLE.response == (
        "0+3=03+5=08+8=16+1=17+4=21;2+2=04+4=08+7=15+0=15+3=18;1+1=02+0=02+6=08+9=17+2=19;answer:1981"
    )
    assert EXAMPLE.answer == 1981
    assert Sum.from_text("123+45+678+901+234") == Sum.from_text(EXAMPLE.prompt) == EXAMPLE


def test_every_text_is_right_step_by_step() -> None:
    """Each `a+b=c` of a text is true, each column starts with the carry, and its ones are the answer's digits."""
    for problem in itertools.islice(problems(0, test=False), 200):
        *columns, answer = problem.response.split(";")
        carry, ones = 0, ""
        for place, column in enumerate(columns):
            start, *steps = column.replace("=", "+").split("+")
            total = int(start)
            assert total == carry
            for digit, result in zip(steps[::2], steps[1::2], strict=True):
                total += int(digit)
                assert int(result) == total
            assert [int(digit) for digit in steps[::2]] == [n // 10**place % 10 for n in problem.numbers]
            carry, ones = total // 10, str(total % 10) + ones
        assert answer == f"answer:{carry}{ones}"
        assert sums.read_answer(problem.response) == sum(problem.numbers)


def test_the_training_scripts_soft_passes() -> None:
    """Inputs that earlier forwards are mixed into, in the shapes of plain ones."""
    spec = importlib.util.spec_from_file_location("train_language", ROOT / "scripts" / "train_language.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script  # dataclasses look their module up
    spec.loader.exec_module(script)
    generator = torch.Generator().manual_seed(0)
    model, _ = load_language_model()
    tokens = script.batch_of(problems(0, test=False), 4)
    masked = script.in_response(tokens) & (script.uniform(tokens, generator) < 0.5)
    for passes in ((1.0,), (0.0, 1.0), (0.0, 0.0, 1.0)):
        phase = replace(script.PHASES[-1], passes=passes)
        logits = script.predictions(model, phase, generator, tokens, masked)
        assert logits.shape == (4, 116, len(sums.VOCABULARY))
        assert logits.isfinite().all()


@pytest.mark.parametrize("text", ["1+2", "1+2+3+4+5+6", "1000+2+3+4+5", "a+2+3+4+5", "1+2+3+4+", ""])
def test_other_prompts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="adds 5 numbers of up to 3 digits"):
        Sum.from_text(text)


def test_judging() -> None:
    right = EXAMPLE.response
    assert EXAMPLE.judge(right) == EXAMPLE.judge(right + "<|end|><|end|>1") == (True, True)
    assert EXAMPLE.judge(right.replace("16", "17")) == (True, False)
    assert EXAMPLE.judge(right[:-1] + "2") == (False, False)
    assert EXAMPLE.judge(right[:-1]) == EXAMPLE.judge(right.replace("answer:", "")) == (False, False)
    assert EXAMPLE.judge(right[:-1] + "<|mask|>") == (False, False)


def test_splits_are_disjoint_and_fixed() -> None:
    train, test = (list(itertools.islice(problems(seed, test=own), 2000)) for seed, own in ((0, False), (1, True)))
    assert not {problem.numbers for problem in train} & {problem.numbers for problem in test}
    draw = random.Random(5)
    drawn = [Sum(tuple(draw.randrange(1000) for _ in range(5))) for _ in range(4000)]
    assert sum(problem.is_test for problem in drawn) / 4000 == pytest.approx(1 / sums.TEST_SHARE, abs=0.015)
    assert sums.hash_of((1, 2, 3, 4, 5)) == sums.hash_of((1, 2, 3, 4, 5)) != sums.hash_of((2, 1, 3, 4, 5))


def test_the_folder_is_whole_and_small() -> None:
    files = {file.name: file.stat().st_size for file in model_path().iterdir() if file.is_file()}
    assert FOLDER_FILES | {"README.md"} <= set(files)
    assert sum(files[name] for name in FOLDER_FILES) <= 4e6
    assert {"seed", "phases"} <= set(json.loads((model_path() / "training.json").read_text()))


def test_transformers_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = fastsample.load_language_model()
    again = AutoModelForMaskedLM.from_pretrained(model_path())
    assert type(again) is type(model) is MaskedDiffusionLM
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert load_language_model(torch.bfloat16)[0].dtype == torch.bfloat16
    assert model.config.mask_token_id == tokenizer.mask_token_id == sums.VOCABULARY.index("<|mask|>")
    assert AutoTokenizer.from_pretrained(model_path()).get_vocab() == tokenizer.get_vocab()


def test_the_tokenizer_reads_and_writes_texts() -> None:
    _, tokenizer = load_language_model()
    text = EXAMPLE.prompt + EXAMPLE.response
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert len(tokenizer(EXAMPLE.prompt).input_ids) == sums.PROMPT_LENGTH
    assert len(ids) < sums.PROMPT_LENGTH + sums.RESPONSE_LENGTH
    assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_most_of_its_texts_are_wholly_right() -> None:
    """By a rule that follows full decoding closely (see benchmarks/decoding_cpu), on problems of the test split."""
    model, tokenizer = load_language_model()
    asked = list(itertools.islice(problems(1, test=True), 64))
    sequences, _ = fastsample.decode_masked(
        model,
        torch.tensor(tokenizer([problem.prompt for problem in asked]).input_ids),
        rule=fastsample.Threshold(0.95),
        gen_length=sums.RESPONSE_LENGTH,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    answers, valid = zip(*judged(tokenizer, asked, sequences[:, sums.PROMPT_LENGTH :]), strict=True)
    assert sum(answers) >= sum(valid) >= 50


def test_the_soft_weights_refine() -> None:
    """Trained with mixed embeddings: latent refinement writes right texts by them, and by the plain ones does not."""
    asked = list(itertools.islice(problems(1, test=True), 32))
    shares = []
    for folder in (model_path() / "soft", model_path()):
        model, tokenizer = load_language_model(folder=folder)
        sequences, _ = fastsample.decode_masked(
            model,
            torch.tensor(tokenizer([problem.prompt for problem in asked]).input_ids),
            rule=fastsample.Threshold(0.99),
            refinement=fastsample.LatentRefinement(refine_steps=0, settled=0),
            gen_length=sums.RESPONSE_LENGTH,
            mask_token_id=tokenizer.mask_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        shares.append(sum(valid for _, valid in judged(tokenizer, asked, sequences[:, sums.PROMPT_LENGTH :])) / 32)
    assert shares[0] >= 0.85
    assert shares[1] <= 0.6


def test_in_llada2_pipeline_our_scheduler_writes_the_same_in_fewer_forwards() -> None:
    """The answers of stock at its threshold; its text where only the forward behind a block is spared."""
    model, tokenizer = load_language_model()
    asked = list(itertools.islice(problems(2, test=True), 12))
    found = {}
    for scheduler in (
        BlockRefinementScheduler(),
        fastsample.ThresholdScheduler(),
        fastsample.ProphetScheduler(thresholds=(9.0, 9.0, 9.0)),
    ):
        pipe = LLaDA2Pipeline(model=model, scheduler=scheduler, tokenizer=tokenizer)
        pipe.set_progress_bar_config(disable=True)
        calls: list[int] = []
        handle = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        texts = pipe(
            [problem.prompt for problem in asked],
            gen_length=96,
            block_length=29,  # 4 blocks hold the prompt and the response
            num_inference_steps=29,
            threshold=0.9,
            editing_threshold=None,
            eos_early_stop=False,
            sampling_method="greedy",
        ).texts
        handle.remove()
        right = sum(problem.judge(text)[0] for problem, text in zip(asked, texts, strict=True))
        found[type(scheduler).__name__] = (texts, right, len(calls))
    texts, right, forwards = found["BlockRefinementScheduler"]
    assert right >= 10
    assert found["ThresholdScheduler"][:2] == (texts, right)
    assert found["ThresholdScheduler"][2] == forwards - 4  # one a block
    assert found["ProphetScheduler"][1] >= right - 1
    assert found["ProphetScheduler"][2] < found["ThresholdScheduler"][2]
