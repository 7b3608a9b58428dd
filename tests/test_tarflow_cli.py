"""`fastsample tarflow`: what it writes, and one line on wrong input."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fastsample.bench.tarflow import markdown
from fastsample.cli import main
from fastsample.tarflow import Plan, TarFlowModel, TarFlowPipeline


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Call `fastsample tarflow` in this process; (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastsample", "tarflow", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main.run()
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    sizes = dict(sample_size=6, in_channels=1, channels=8, num_blocks=2, layers_per_block=1, head_dim=8)
    TarFlowPipeline(TarFlowModel(**sizes, num_classes=3)).save_pretrained(path)
    return path


def test_sample(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("sample", "--labels", "3,7", "--count", "2", "--out", "images", "--json")
    made = json.loads(out)
    assert status == 0
    assert [Path(file).name for file in made["images"]] == [f"label{i}-00{j}.png" for i in (3, 7) for j in (0, 1)]
    assert Image.open(tmp_path / made["images"][0]).size == (16, 16)
    assert made["sweeps"] < 64 * 63 / 5  # by the bundled plan


def test_plan_is_kept_beside_the_model_and_used(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    images = torch.rand(3, 1, 6, 6) * 2 - 1
    save_file({"images": images, "labels": torch.tensor([0, 1, 2])}, folder / "data.safetensors")
    status, out, _ = run("plan", "--model", str(folder), "--data", str(folder / "data.safetensors"), "--repeats", "1")
    assert status == 0
    assert "times faster" in out
    assert Plan.load(folder).measured["data"]
    status, out, _ = run("sample", "--model", str(folder), "--json")
    assert json.loads(out)["sweeps"] == sum(Plan.load(folder).measured["sweeps"])


def test_bench(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    options = ("--batch", "2,3", "--repeats", "2", "--images", "0", "--out", "bench")
    status, out, _ = run("bench", "--model", str(folder), *options)
    lines = [json.loads(line) for line in (tmp_path / "bench" / "results.jsonl").read_text().splitlines()]
    results = [line for line in lines if "arm" in line]
    assert status == 0
    assert out == (tmp_path / "bench" / "table.md").read_text() == markdown(results)
    assert [line["plan"] for line in lines if "plan" in line] == [
        (tmp_path / "bench" / f"plan-{batch}.json").read_text() for batch in (2, 3)
    ]
    assert {(result["batch"], result["arm"]) for result in results} == {
        (batch, arm) for batch in (2, 3) for arm in ("sequential", "Jacobi", "GS-Jacobi, 8 chunks", "plan")
    }
    for result in results:
        assert result["passes"] == result["sweeps"]
        assert result["residual"] <= 1e-3
        assert result["speedup"][0] <= result["speedup"][1] <= result["speedup"][2]
    assert [result["passes"] for result in results if result["arm"] == "sequential"] == [2 * 8] * 2


def test_bench_goes_on_from_its_record(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    record = tmp_path / "bench" / "results.jsonl"

    def lines(*options: str) -> list[str]:
        common = ("--model", str(folder), "--repeats", "1", "--images", "0", "--out", "bench")
        assert run("bench", *common, *options)[0] == 0
        return record.read_text().splitlines()

    first = lines("--batch", "2")
    assert lines("--batch", "2,3")[: len(first)] == first  # the seconds are those of the first run
    record.write_text("\n".join(first[:-1]) + '\n{"key": "torn')  # stopped within an arm
    again = lines("--batch", "2")
    assert again[0] == first[0]  # the plan is kept, and all arms are timed again together
    assert len(again) == len(first[:-1]) + 4
    assert len(lines("--batch", "2", "--residual", "1e-3")) == 5 + 5  # other settings are other results
    assert len(lines("--batch", "2", "--no-resume")) == len(first) == 5
