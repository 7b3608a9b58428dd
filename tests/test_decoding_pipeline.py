"""`MaskedDiffusionPipeline`: prompts to texts, as diffusers' pipelines are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_models import MASK, bert, bundled_kind
from refusal import check_refused
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import fastsample as fs
from fastsample.decoding import Commit
from fastsample.decoding.prompts import left_pad, texts_of
from fastsample.demo.language.loading import load_language_model

LETTERS = "abcdefghijklmnopqrs"
PROMPTS = ["abc", "defghij", "k"]


def letters(**special: str) -> Any:
    """A tokenizer of single letters, with four special tokens."""
    tokens = [*LETTERS, "<pad>", "<end>", "<user>", "<answer>", "<mask>"]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="a"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    given = dict(pad_token="<pad>", eos_token="<end>", mask_token="<mask>")
    extra = dict(additional_special_tokens=["<user>", "<answer>"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{**given, **special}, **extra)


def pipeline(model: Any = None, **special: str) -> fs.MaskedDiffusionPipeline:
    pipe = fs.MaskedDiffusionPipeline(bundled_kind() if model is None else model, letters(**special))
    pipe.set_progress_bar_config(disable=True)
    return pipe


OPTIONS: dict[str, Any] = dict(gen_length=12, block_length=4)


def test_it_is_decode_masked_of_a_padded_batch() -> None:
    pipe = pipeline()
    output = pipe(PROMPTS, rule=fs.Threshold(0.5), guidance_scale=0.3, eos_early_stop=False, **OPTIONS)
    ids, mask = left_pad([[LETTERS.index(letter) for letter in prompt] for prompt in PROMPTS], filler=19)
    expected, ledger = fs.decode_masked(
        pipe.model,
        ids,
        attention_mask=mask,
        rule=fs.Threshold(0.5),
        guidance_scale=0.3,
        mask_token_id=MASK,
        **OPTIONS,
    )
    assert torch.equal(output.sequences, expected[:, 7:])
    assert output.ledger.row_forwards == ledger.row_forwards
    assert output.texts == texts_of(pipe.tokenizer, output.sequences, [20])
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, rule=fs.Threshold(0.5), guidance_scale=0.3, eos_early_stop=False, **OPTIONS)
        assert torch.equal(alone.sequences[0], output.sequences[row])
        assert alone.texts == output.texts[row : row + 1]


def test_texts_end_at_the_end_token() -> None:
    """Whatever the rule commits first: nothing special, nothing behind the end."""
    tokenizer = letters()
    sequences = torch.tensor([[0, 1, 20, 2, 2], [3, 21, 4, 4, 4], [20, 0, 0, 0, 0]])
    assert texts_of(tokenizer, sequences, [20]) == ["ab", "deee", ""]
    pipe = pipeline(bundled_kind(2))
    free = pipe(PROMPTS, eos_early_stop=False, **OPTIONS)
    end = int(free.sequences[0, 5])
    stopped = pipe(PROMPTS, eos_token_id=end, **OPTIONS)
    first = free.sequences[0].tolist().index(end)
    assert stopped.sequences[0, : first + 1].tolist() == free.sequences[0, : first + 1].tolist()
    assert set(stopped.sequences[0, first:].tolist()) == {end}
    assert stopped.ledger.row_forwards[0] < free.ledger.row_forwards[0]


def test_chats_go_through_the_template() -> None:
    pipe = pipeline()
    pipe.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<answer>"
        "{% endif %}"
    )
    ids, mask = left_pad([[21, 0, 1, 2, 22], [21, 3, 22]], filler=19)
    expected = pipe(input_ids=ids, attention_mask=mask, **OPTIONS).sequences
    assert torch.equal(pipe(["abc", "d"], **OPTIONS).sequences, expected)
    chats = [[{"role": "user", "content": text}] for text in ("abc", "d")]
    assert torch.equal(pipe(messages=chats, **OPTIONS).sequences, expected)
    assert torch.equal(pipe(messages=chats[0], **OPTIONS).sequences, expected[:1])
    raw, mask = left_pad([[0, 1, 2], [3]], filler=19)
    plain = pipe(input_ids=raw, attention_mask=mask, **OPTIONS).sequences
    assert torch.equal(pipe(["abc", "d"], use_chat_template=False, **OPTIONS).sequences, plain)


def test_a_callback_sees_each_step_and_may_end_the_run() -> None:
    pipe, seen = pipeline(), []

    def callback(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        seen.append((step, int((tensors["tokens"] == MASK).sum())))
        pipe._interrupt = step == 3

    output = pipe("abc", callback_on_step_end=callback, **OPTIONS)
    assert seen == [(0, 11), (1, 10), (2, 9), (3, 8)]
    assert int((output.sequences == MASK).sum()) == 8
    assert not (pipe("abc", **OPTIONS).sequences == MASK).any()


def test_committed_tokens_are_streamed() -> None:
    commits: list[Commit] = []
    output = pipeline()("abc", rule=fs.Threshold(0.4), stream=commits.extend, eos_early_stop=False, **OPTIONS)
    assert {(commit.position, commit.token) for commit in commits} == set(enumerate(output.sequences[0].tolist()))
    assert [commit.forward for commit in commits] == sorted(commit.forward for commit in commits)


def test_a_row_has_its_own_generator() -> None:
    pipe = pipeline()
    options: dict[str, Any] = dict(temperature=1.0, top_k=8, eos_early_stop=False, **OPTIONS)
    together = pipe(PROMPTS, generator=[torch.Generator().manual_seed(seed) for seed in range(3)], **options)
    for row, prompt in enumerate(PROMPTS):
        alone = pipe(prompt, generator=torch.Generator().manual_seed(row), **options)
        assert torch.equal(alone.sequences[0], together.sequences[row])


def test_it_comes_back_from_a_folder(tmp_path: Path) -> None:
    """As save_pretrained wrote it, and as transformers did."""
    pipe = pipeline(bert().float())
    expected = pipe(PROMPTS, **OPTIONS)
    pipe.save_pretrained(tmp_path / "diffusers")
    pipe.model.save_pretrained(tmp_path / "transformers")
    pipe.tokenizer.save_pretrained(tmp_path / "transformers")
    for folder in ("diffusers", "transformers"):
        loaded = fs.MaskedDiffusionPipeline.from_pretrained(str(tmp_path / folder), dtype=torch.float32)
        loaded.set_progress_bar_config(disable=True)
        assert loaded.config.mask_token_id == MASK
        found = loaded(PROMPTS, **OPTIONS)
        assert torch.equal(found.sequences, expected.sequences)
        assert found.texts == expected.texts


def test_code_of_others_runs_only_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as LLaDA's: its class comes with it, and writes a file when it is imported."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    pipe = pipeline(bert().float())
    pipe.model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.OwnModel", "AutoConfig": "modeling_own.OwnConfig"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "own"}))
    pipe.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "modeling_own.py").write_text(
        "import pathlib\n"
        "from transformers import BertConfig, BertForMaskedLM\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnModel(BertForMaskedLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        fs.MaskedDiffusionPipeline.from_pretrained(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    loaded = fs.MaskedDiffusionPipeline.from_pretrained(str(tmp_path), trust_remote_code=True, dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    assert (tmp_path / "ran").exists()
    assert torch.equal(loaded("abc", **OPTIONS).sequences, pipe("abc", **OPTIONS).sequences)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "prompt, messages and input_ids: give exactly one"),
        ({"prompt": "a", "input_ids": torch.tensor([[1]])}, "give exactly one"),
        ({"prompt": []}, "prompt = []"),
        ({"prompt": "a", "output_type": "np"}, "output_type = 'np'"),
        ({"prompt": "a", "callback_on_step_end_tensor_inputs": ["logits"]}, "['logits']"),
        ({"prompt": "a", "block_length": 0}, "block_length = 0"),
        ({"prompt": "a", "rule": fs.Prophet(region=(10, 5))}, "region = (10, 5)"),
    ],
)
def test_wrong_calls_are_one_line_before_any_forward(call: dict[str, Any], words: str) -> None:
    pipe, forwards = pipeline(), []
    pipe.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    check_refused(lambda: pipe(**{**OPTIONS, **call}), words)
    assert forwards == []


def test_wrong_parts_are_one_line() -> None:
    with pytest.raises(ValueError, match="mask_token_id = None, and neither"):
        fs.MaskedDiffusionPipeline(bert())
    alone = fs.MaskedDiffusionPipeline(bert(), mask_token_id=MASK)
    with pytest.raises(ValueError, match="tokenizer = None"):
        alone("abc", **OPTIONS)
    with pytest.raises(ValueError, match='output_type = "text" needs a tokenizer'):
        alone(input_ids=torch.tensor([[1]]), **OPTIONS)
    alone.set_progress_bar_config(disable=True)
    assert alone(input_ids=torch.tensor([[1]]), output_type="seq", **OPTIONS).texts is None


LOADING: list[dict[str, Any]] = [
    dict(torch_dtype=torch.bfloat16),
    dict(dtype=torch.float16),
    dict(local_files_only=True, use_safetensors=True, low_cpu_mem_usage=True),
    dict(revision="main", force_download=False, token=None),
    dict(device_map="cpu"),
    dict(device_map="balanced"),
    dict(variant="fp16", torch_dtype=torch.float16),
    dict(mask_token_id=3),
    dict(tokenizer=None, mask_token_id=3),
]


@pytest.mark.parametrize("options", LOADING, ids=[",".join(options) for options in LOADING])
@pytest.mark.parametrize("kind", ["pipeline", "model"])
def test_pipelines_load_as_diffusers_do(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """A saved pipeline, and a model with its tokenizer: the same arguments for both."""
    model, tokenizer = load_language_model()
    saved = fs.MaskedDiffusionPipeline(model, tokenizer) if kind == "pipeline" else model
    saved.save_pretrained(tmp_path, variant=options.get("variant"))
    if kind == "model":
        tokenizer.save_pretrained(tmp_path)
    for pipe in (
        fs.MaskedDiffusionPipeline.from_pretrained(str(tmp_path), **options),
        fs.MaskedDiffusionPipeline.from_pretrained(pretrained_model_name_or_path=tmp_path, **options),
    ):
        assert pipe.model.dtype == (options.get("dtype") or options.get("torch_dtype") or torch.float32)
        assert pipe.config.mask_token_id == options.get("mask_token_id", model.config.mask_token_id)
        assert (pipe.tokenizer is None) == ("tokenizer" in options)
        assert not pipe.model.training
    with pytest.raises(ValueError, match="output_loading_info = True"):
        fs.MaskedDiffusionPipeline.from_pretrained(str(tmp_path), output_loading_info=True)
