"""The lm-evaluation-harness adapter: what it answers to each kind of request, by the bundled model."""

from __future__ import annotations

import importlib.util
import itertools
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fastsample
from fastsample.bench.harness import Generation, HarnessModel, harness_model
from fastsample.decoding.pipeline import MaskedDiffusionPipeline
from fastsample.decoding.prompts import encode, tokens_of
from fastsample.demo.language.sums import Sum, problems
from fastsample.names.rules import parse_method

HARNESS = importlib.util.find_spec("lm_eval") is not None


@dataclass
class Instance:
    """What the harness hands over, as far as a model reads it."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def pipe() -> MaskedDiffusionPipeline:
    found = MaskedDiffusionPipeline(*fastsample.load_language_model())
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def asked() -> list[Sum]:
    return list(itertools.islice(problems(3, test=True), 5))


def model_of(pipe: MaskedDiffusionPipeline, rule: str = "threshold", **options: Any) -> HarnessModel:
    return HarnessModel(pipe, parse_method(rule), **{"gen_length": 96, "batch": 3, "draws": 32, **options})


def test_generation_answers_in_order_up_to_the_stop(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    stops: list[dict[str, Any]] = [{"until": ["answer:"]}, {"until": ";"}, {}, {"until": ["answer:"]}, {"until": []}]
    model = model_of(pipe)
    texts = model.generate_until([Instance((p.prompt, own)) for p, own in zip(asked, stops, strict=True)])
    assert model.forwards > 0
    whole = [model.generate_until([Instance((problem.prompt, {}))])[0] for problem in asked]
    assert [text.partition("answer:")[0] for text in (whole[0], whole[3])] == [texts[0], texts[3]]
    assert texts[1] == whole[1].partition(";")[0]
    assert (texts[2], texts[4]) == (whole[2], whole[4])
    right = sum(problem.judge(text)[0] for problem, text in zip(asked, whole, strict=True))
    assert right >= 4


def test_generation_takes_length_and_temperature(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    model = model_of(pipe, "threshold:block=8")
    (short,) = model.generate_until([Instance((asked[0].prompt, {"max_gen_toks": 10}))])
    assert len(pipe.tokenizer(short).input_ids) == 16  # whole blocks
    hot = {"max_gen_toks": 16, "do_sample": True, "temperature": 3.0}
    sampled = model.generate_until([Instance((asked[0].prompt, hot))] * 4)
    assert len(set(sampled)) > 1
    assert sampled == model.generate_until([Instance((asked[0].prompt, hot))] * 4)
    greedy = {**hot, "do_sample": False}
    assert len(set(model.generate_until([Instance((asked[0].prompt, greedy))] * 4))) == 1


def test_the_right_text_is_the_likelier_and_the_greedy_one(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    model = model_of(pipe)
    end = pipe.tokenizer.eos_token
    for problem in asked[:2]:
        context = problem.prompt + problem.response[:-4]
        wrong = f"{(problem.answer + 111) % 10000:04d}"
        requests = [Instance((context, text + 10 * end)) for text in (problem.response[-4:], wrong)]
        (right, greedy), (other, also) = model.loglikelihood(requests)
        assert right > other + 5
        assert right <= 0
        assert (greedy, also) == (True, False)


def test_the_estimate_of_one_token_is_exact(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    """With one token there is one masking: its log-probability."""
    context, token = asked[0].prompt, asked[0].response[0]
    ((found, _),) = model_of(pipe).loglikelihood([Instance((context, token))])
    ids = pipe.tokenizer(context).input_ids
    with torch.no_grad():
        logits = pipe.model(torch.tensor([[*ids, pipe.tokenizer.mask_token_id]])).logits[0, -1]
    logits[pipe.tokenizer.mask_token_id] = -math.inf
    want = logits.log_softmax(-1)[pipe.tokenizer(token).input_ids[0]]
    assert found == pytest.approx(float(want), abs=1e-5)


def test_rolling_likelihoods_and_empty_continuations(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    model = model_of(pipe)
    text = asked[0].prompt + asked[0].response
    shuffled = "".join(sorted(text.replace("answer:", "")))
    likely, unlikely = model.loglikelihood_rolling([Instance((text,)), Instance((shuffled,))])
    assert 0 > likely > unlikely
    assert model.loglikelihood([Instance((asked[0].prompt, ""))]) == [(0.0, True)]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({}, Generation()),
        ({"until": "a"}, Generation(until=("a",))),
        ({"until": ["a", "", "b"]}, Generation(until=("a", "b"))),
        ({"until": None, "max_new_tokens": 7}, Generation(length=7)),
        ({"max_gen_toks": 5, "max_new_tokens": 7}, Generation(length=5)),
        ({"max_tokens": "9"}, Generation(length=9)),
        ({"max_completion_tokens": 3}, Generation(length=3)),
        ({"temperature": 0.5}, Generation(temperature=0.5)),
        ({"temperature": 0.0}, Generation()),
        ({"do_sample": False, "temperature": 0.5, "top_p": 0.9, "top_k": 4}, Generation()),
        ({"do_sample": True}, Generation(temperature=1.0)),
        ({"do_sample": True, "temperature": 0.3, "top_p": 0.9}, Generation(temperature=0.3, top_p=0.9)),
        ({"temperature": 0.3, "top_k": 0, "num_beams": 1}, Generation(temperature=0.3)),
        ({"repetition_penalty": 1.2}, Generation(repetition_penalty=1.2)),
    ],
)
def test_generation_arguments_are_read_as_the_harness_reads_them(given: dict[str, Any], read: Generation) -> None:
    before = dict(given)
    assert Generation.read(given) == read
    assert given == before


@pytest.mark.skipif(not HARNESS, reason="lm_eval is not installed: the extra lm-eval")
@pytest.mark.parametrize("sample", [None, True, False])
@pytest.mark.parametrize("heat", [None, 0.0, 0.7])
@pytest.mark.parametrize("length", ["max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"])
def test_as_its_own_reading(sample: bool | None, heat: float | None, length: str) -> None:
    from lm_eval.models.utils import normalize_gen_kwargs

    given = {"until": "x", "do_sample": sample, "temperature": heat, length: 12}
    given = {name: value for name, value in given.items() if value is not None}
    theirs, ours = normalize_gen_kwargs(given), Generation.read(given)
    assert (list(ours.until), ours.length) == (theirs["until"], theirs["max_gen_toks"])
    if "temperature" in theirs:
        assert ours.temperature == theirs["temperature"]
    assert (ours.temperature > 0) == (theirs["do_sample"] and theirs.get("temperature") != 0.0)


def test_an_unknown_generation_argument_is_refused(pipe: MaskedDiffusionPipeline) -> None:
    model = model_of(pipe)
    with pytest.raises(ValueError, match=r"generation arguments \{'num_beams': 4\}: give some of until"):
        model.generate_until([Instance(("1+2", {"num_beams": 4}))])
    assert model.forwards == 0


def test_a_stop_spares_the_forwards_behind_it(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    whole, short = model_of(pipe, "low-confidence:block=8"), model_of(pipe, "low-confidence:block=8")
    (text,) = whole.generate_until([Instance((asked[0].prompt, {}))])
    (cut,) = short.generate_until([Instance((asked[0].prompt, {"until": [";"]}))])
    assert cut == text.partition(";")[0]
    assert short.forwards < whole.forwards / 2


class Begun:
    """The bundled tokenizer, which begins texts by a BOS: here the character 0."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.bos_token_id = inner, inner("0").input_ids[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        found = self._inner(text, add_special_tokens=False)
        if add_special_tokens:
            found["input_ids"] = [self.bos_token_id, *found["input_ids"]]
        return found


def test_a_text_begins_by_one_bos(pipe: MaskedDiffusionPipeline) -> None:
    """Added where the tokenizer adds it, and not where the text has it: a chat template's, say."""
    tokenizer = Begun(pipe.tokenizer)
    ids = tokenizer("123", add_special_tokens=False)["input_ids"]
    begin = tokenizer.bos_token_id
    assert tokens_of(tokenizer, "123") == tokens_of(tokenizer, "0123") == [begin, *ids]
    assert tokens_of(pipe.tokenizer, "123") == ids
    rows, mask = encode(tokenizer, ["0123", "123", "0"], chat=False)
    assert rows[0].tolist() == rows[1].tolist() == [begin, *ids]
    assert mask.sum(-1).tolist() == [4, 4, 1]
    model = model_of(pipe)
    split = replace(model, pipe=SimpleNamespace(tokenizer=tokenizer, device="cpu"))._split  # type: ignore[arg-type]
    assert [part.tolist() for part in split("12", "3")] == [[begin, *ids[:2]], ids[2:]]
    assert [part.tolist() for part in split("", "123")] == [[begin], ids]
    assert [part.tolist() for part in model._split("", "123")] == [[], ids]


@pytest.mark.skipif(HARNESS, reason="lm_eval is installed")
def test_without_the_harness_the_extra_is_named() -> None:
    with pytest.raises(ImportError, match=r"pip install 'fastsample\[lm-eval\]'"):
        harness_model("nowhere/nothing")


@pytest.mark.skipif(not HARNESS, reason="lm_eval is not installed: the extra lm-eval")
def test_the_harness_takes_it(pipe: MaskedDiffusionPipeline, asked: list[Sum]) -> None:
    from lm_eval.api.model import LM

    model = harness_model(pipe, rule="threshold", gen_length=96)
    assert isinstance(model, LM)
    assert (model.rank, model.world_size) == (0, 1)
    (text,) = model.generate_until([Instance((asked[0].prompt, {"until": ["answer:"]}))])
    assert text == asked[0].response.partition("answer:")[0]
