"""Texts while they are written: streamers of transformers, stop strings, repetition penalty."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from decoding_models import MASK, bundled_kind
from refusal import check_refused
from test_decoding_pipeline import LETTERS, letters, pipeline
from transformers import TextIteratorStreamer, TextStreamer

import fastsample as fs
from fastsample.decoding import CommitRule
from fastsample.decoding.streaming import Deltas, Stops

RULES: dict[str, CommitRule] = {
    "one by one": fs.LowConfidence(),
    "threshold": fs.Threshold(0.4),
    "checked": fs.Checked(0.999, 0.6, base=fs.Threshold(0.4)),
    "rows": fs.Checked(0.999, 0.6, form="rows", base=fs.Factor(1.0)),
}
LENGTH = 24


def written(rule: CommitRule, **options: Any) -> Any:
    pipe = pipeline()
    return pipe("abc", rule=rule, gen_length=LENGTH, block_length=8, **options)


class Pieces(TextStreamer):  # type: ignore[misc]
    """Notes every call."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tokens: list[list[int]] = []
        self.text, self.ends = "", 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens.append(value.flatten().tolist())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text += text
        self.ends += stream_end


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("stop", [None, 2, 7])
def test_a_streamer_gets_the_text_in_order(name: str, stop: int | None) -> None:
    """The prompt, then the response's tokens as they become final; nothing of a stop string or behind it."""
    whole = written(RULES[name]).texts[0]
    strings = None if stop is None else [whole[stop : stop + 2], "zz"]
    streamer = Pieces(letters())
    out = written(RULES[name], streamer=streamer, stop_strings=strings)
    expected = whole if strings is None else whole[: whole.find(strings[0])]
    assert out.texts == [expected]
    assert streamer.text == expected
    assert streamer.ends == 1
    prompt, *pieces = streamer.tokens
    assert prompt == [0, 1, 2]
    assert "".join(LETTERS[token] for token in itertools.chain(*pieces) if token < len(LETTERS)) == expected
    if stop is None:
        assert len(pieces) > 1


def test_the_iterator_of_transformers_on_another_thread() -> None:
    expected = written(fs.LowConfidence()).texts[0]
    streamer = TextIteratorStreamer(letters(), skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(target=written, args=(fs.LowConfidence(),), kwargs={"streamer": streamer})
    thread.start()
    assert "".join(streamer) == expected
    thread.join()


def test_whoever_waits_is_told_of_an_error() -> None:
    """A refused call and a broken model end the stream too."""
    for options, kind in ((dict(temperature=-1.0), ValueError), (dict(callback_on_step_end=print), TypeError)):
        streamer = TextIteratorStreamer(letters(), timeout=60)
        with pytest.raises(kind):
            pipeline()("abc", gen_length=8, streamer=streamer, callback_on_step_end_tensor_inputs=("tokens",),
                       **{**options, **({"callback_on_step_end": _broken} if kind is TypeError else {})})  # fmt: skip
        for _ in streamer:
            pass


def _broken(*_: Any) -> Any:
    raise TypeError("broken")


@pytest.mark.parametrize("name", RULES)
def test_rows_stop_each_on_its_own(name: str) -> None:
    """The text before the first stop, whatever the batch; and the forwards after it are spared."""
    prompts = ["abc", "defghij", "k", "ab"]
    pipe = pipeline()
    options: dict[str, Any] = dict(rule=RULES[name], gen_length=LENGTH, block_length=4)
    whole = pipe(prompts, **options)
    strings = [whole.texts[0][3:5], whole.texts[1][1]]
    out = pipe(prompts, stop_strings=strings, **options)
    for text, full, row in zip(out.texts, whole.texts, range(4), strict=True):
        places = [place for place in (full.find(stop) for stop in strings) if place >= 0]
        assert text == full[: min(places, default=len(full))]
        assert out.ledger.row_forwards[row] <= whole.ledger.row_forwards[row]
        alone = pipe(prompts[row], stop_strings=strings, **options)
        assert alone.texts == [text]
        assert torch.equal(alone.sequences[0], out.sequences[row])
    assert sum(out.ledger.row_forwards) < sum(whole.ledger.row_forwards)
    assert (
        pipe(prompts, stop_strings=strings[0], pad_token_id=None, **options).texts[0]
        == whole.texts[0].split(strings[0])[0]
    )


class Syllables:
    """A tokenizer of longer tokens."""

    words = ("ab", "cde", "f", "gh")

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return "".join(self.words[token] for token in tokens)

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [10 + ord(letter) - ord("a") for letter in text]}


def test_a_stop_that_begins_inside_a_token() -> None:
    """What stands before it in that token is tokenized anew; what may become a stop is held back."""
    sent: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            sent.extend(value.flatten().tolist())

        def end(self) -> None:
            sent.append(-1)

    tokenizer = Syllables()
    stops = Stops(["dexx", "def"], tokenizer)
    deltas = Deltas(Streamer(), stops, torch.tensor([[7]]))
    deltas.put([0])
    assert sent == [7, 0]
    deltas.put([0, 1])  # "abcde", whose end may become a stop
    assert sent == [7, 0]
    deltas.put([0, 1, 2])
    deltas.end([0, 1, 2, 3], tokenizer)
    assert sent == [7, 0, 12, -1]  # "ab", "c"
    assert stops.length([0, 1, 2, 3]) == 3
    assert stops.length([0, 1, 3]) is None
    sent.clear()
    deltas = Deltas(Streamer(), stops, torch.tensor([[7]]))
    deltas.put([0, 1])
    deltas.put([0, 1, 3])  # "abcdegh": no stop after all
    deltas.end([0, 1, 3], tokenizer)
    assert sent == [7, 0, 1, 3, -1]


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    """As its logits processor, on the text in sight: without the mask token and padding."""
    from transformers import RepetitionPenaltyLogitsProcessor

    model = bundled_kind(1)
    ids = torch.tensor([[0, 0, 3, 4, 8], [5, 7, 11, 2, 9]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found, _ = fs.decode_masked(
        model, ids, rule=fs.LowConfidence(), gen_length=8, mask_token_id=MASK, attention_mask=mask,
        repetition_penalty=penalty,
    )  # fmt: skip
    plain, _ = fs.decode_masked(
        model, ids, rule=fs.LowConfidence(), gen_length=8, mask_token_id=MASK, attention_mask=mask
    )
    assert not torch.equal(found, plain)
    process = RepetitionPenaltyLogitsProcessor(penalty)
    for row in range(2):
        text = torch.cat([ids[row][mask[row] == 1], torch.full((8,), MASK)])[None]
        prompt = text.shape[1] - 8
        for _ in range(8):
            logits = model(input_ids=text).logits[0, prompt:]
            seen = text[text != MASK].expand(8, -1)
            logits = process(seen, logits)
            logits[:, MASK] = -torch.inf
            top = logits.softmax(-1).max(-1)
            place = int(top.values.masked_fill(text[0, prompt:] != MASK, -1).argmax())
            text[0, prompt + place] = top.indices[place]
        assert torch.equal(found[row, 5:], text[0, prompt:])


def test_wrong_calls_are_refused() -> None:
    pipe = pipeline()
    streamer = TextStreamer(letters())
    check_refused(lambda: pipe(["a", "b"], streamer=streamer), "streamer with 2 prompts")
    check_refused(lambda: pipe("a", stop_strings=["x", ""]), "stop_strings has an empty one")
    bare = fs.MaskedDiffusionPipeline(bundled_kind(), mask_token_id=MASK)
    ids = torch.tensor([[1, 2]])
    check_refused(lambda: bare(input_ids=ids, output_type="seq", stop_strings="a"), "stop_strings needs a tokenizer")
    check_refused(lambda: bare(input_ids=ids, output_type="seq", streamer=streamer), "streamer needs a tokenizer")
    for penalty in (0.0, -1.0, float("nan"), float("inf")):
        check_refused(lambda penalty=penalty: pipe("a", repetition_penalty=penalty), "repetition_penalty = ")
