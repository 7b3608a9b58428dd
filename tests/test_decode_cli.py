"""`fastsample decode` and `fastsample bench --decode` as a user meets them; methods by name; the benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsample.bench import decoding_report as report
from fastsample.bench.decoding import DecodingBench
from fastsample.bench.record import Record
from fastsample.decoding import After, Caching, Entropy, LatentRefinement, LowConfidence, Prophet, Threshold
from fastsample.demo.language.loading import load_language_model
from fastsample.demo.language.sums import Sum
from fastsample.names.rules import ADDED, RULES, parse_method

PROMPT = "123+45+678+901+234"


def test_methods_by_name() -> None:
    assert parse_method("threshold:confidence=0.7,block=32").settings == {
        "rule": Threshold(0.7),
        "refinement": None,
        "cache": None,
        "steps": None,
        "block_length": 32,
    }
    assert parse_method("prophet").rule == Prophet(base=LowConfidence())
    assert parse_method("lrd:mixing=0.2").settings["refinement"] == LatentRefinement(mixing=0.2)
    assert parse_method("lrd").rule == Entropy()
    whole = parse_method(
        "prefix:refresh=4+lrd+prophet:thresholds=8/5/3.5,region=82/4+threshold:confidence=0.8,steps=48"
    )
    assert whole.rule == Prophet((8.0, 5.0, 3.5), (82, 4), base=Threshold(0.8))
    assert (whole.cache, whole.refinement, whole.steps) == (Caching("prefix", 4), LatentRefinement(), 48)
    assert parse_method("prophet:region=after/13/4").rule == Prophet(region=After((13,), 4))
    for name in [*RULES, *ADDED]:
        assert parse_method(name).label == name


def test_decode_writes_text_and_says_what_it_took(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("decode", "--prompt", PROMPT, "--rule", "threshold:confidence=0.9")
    assert status == 0
    text, cost = out.splitlines()
    assert text.startswith("123+045+678+901+234=0+3=03+")
    assert Sum.from_text(PROMPT).judge(text.partition("=")[2])[0]
    assert " forwards, " in cost


def test_decode_speaks_json_and_takes_files(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastsample.cli.engines import decode as engine  # torch and transformers

    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n1+2+3+4+5\n")
    of_file = ("decode", "--prompts", "prompts.txt", "--rule", "low-confidence", "--steps", "24", "--json")
    status, out, _ = run(*of_file)
    assert status == 0
    first, second = json.loads(out)
    assert second["prompt"] == "001+002+003+004+005="
    for one in (first, second):
        assert len(one["committed_at"]) == 96
        assert max(one["committed_at"]) <= one["forwards"] <= 24
        assert one["tokens"] == sum(at > 0 for at in one["committed_at"])
    same = json.loads(run("decode", "--prompt", PROMPT, "--rule", "low-confidence", "--steps", "24", "--json")[1])
    assert same[0]["text"] == first["text"]
    write = engine.write

    def interrupted(pipe: Any, text: str, *rest: Any) -> Any:
        if text == second["prompt"]:
            raise KeyboardInterrupt
        return write(pipe, text, *rest)

    monkeypatch.setattr(engine, "write", interrupted)
    status, out, err = run(*of_file)
    assert (status, err.count("\n")) == (130, 1)
    assert [one["text"] for one in json.loads(out)] == [first["text"]]  # what was written is not lost


def test_colours_change_no_character(run) -> None:  # type: ignore[no-untyped-def]
    import re

    plain = run("decode", "--prompt", PROMPT, "--no-colours")[1]
    coloured = run("decode", "--prompt", PROMPT, "--colours")[1]
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()[0] == plain.splitlines()[0]


def test_bench_writes_everything_and_resumes(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = ["bench", "--decode", "--problems", "8", "--out", "b", "--json", "--markdown", "--plot"]
    command += ["--rule", "low-confidence:steps=12", "--rule", "threshold:confidence=0.9,block=32"]
    status, out, _ = run(*command)
    assert status == 0
    assert "threshold:confidence=0.9" in out
    for name in ("results.jsonl", "results.json", "results.md", "pareto.png"):
        assert (tmp_path / "b" / name).stat().st_size > 0
    before = (tmp_path / "b" / "results.jsonl").read_text()
    assert json.loads(before.splitlines()[0])["forwards"] <= 12
    assert run(*command)[0] == 0
    assert (tmp_path / "b" / "results.jsonl").read_text() == before


def make_bench(tmp_path: Path, **options: Any) -> DecodingBench:
    model, tokenizer = load_language_model()
    return DecodingBench(model, tokenizer, Record(tmp_path / "results.jsonl"), **{"count": 10, "timed": 8, **options})


def test_what_is_right_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    methods = [parse_method("random:steps=16"), parse_method("threshold")]
    small, large = (list(make_bench(tmp_path / str(batch), batch=batch, timed=8).run(methods)) for batch in (3, 10))
    for ours, theirs in zip(small, large, strict=True):
        same = ("answers", "valid", "forwards", "forwards_deviation", "tokens_per_forward")
        assert {key: ours[key] for key in same} == {key: theirs[key] for key in same}
        assert ours["seconds_1"] > 0 < ours["seconds_8"]


def test_a_record_is_of_its_weights_and_problems(tmp_path: Path) -> None:
    method = parse_method("threshold:confidence=0.5")
    bench = make_bench(tmp_path)
    list(bench.run([method]))
    assert make_bench(tmp_path).result(method) is not None
    assert make_bench(tmp_path, count=9).result(method) is None
    with torch.no_grad():
        bench.model.head.bias[0] += 1
    bench.__post_init__()
    assert bench.result(method) is None


def test_reports() -> None:
    full = {
        "method": "full",
        "problems": 100,
        "answers": 0.9,
        "valid": 0.5,
        "forwards": 80.0,
        "forwards_deviation": 4.0,
    }
    full |= {"tokens_per_forward": 1.1, "seconds_1": 0.5, "seconds_1_deviation": 0.01}
    full |= {"seconds_8": 0.2, "seconds_8_deviation": 0.0}
    fast = {**full, "method": "fast", "forwards": 20.0}
    assert report.cells(fast, full)[:4] == ["90.0% ± 3.0%", "50.0% ± 5.0%", "20.0 ± 4.0", "4.0x"]
    assert report.markdown([full, fast]).splitlines()[-1].startswith("| `fast` | 90.0% ± 3.0% | 50.0% ± 5.0% |")
    assert report.rich_table([full, fast]).row_count == 2
    assert report.frontier([(3, 0.5), (1, 0.2), (2, 0.6), (4, 0.9), (2, 0.4)]) == [(1, 0.2), (2, 0.6), (4, 0.9)]
