"""The README's examples, run as they stand: what they draw on the bundled models is what is asked for."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastsample
from fastsample.bench import reference, runner
from fastsample.demo.bundled import load_pipeline, prompt_fidelity
from fastsample.demo.scenes import sample_scenes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROMPT = "a large red circle at the left on a white background"
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OTHER = ("MaskedDiffusion", "tarflow", "preset.json", "interop")
"""In examples that draw nothing, or need what takes minutes to make: the tests of those subjects run them."""
DRAWING = [
    block for block in BLOCKS if re.search(r"\b(pipe|sampler)\(", block) and not any(word in block for word in OTHER)
]
LINES = re.findall(r"^fastsample (?:sample|bench) .*$", README, re.MULTILINE)


def local(line: str) -> bool:
    """Whether an example is of a bundled model that draws: not of a hub's, nor of the language model."""
    return "/" not in line.partition("--model ")[2].partition(" ")[0] and "--decode" not in line


SAMPLES = [line for line in LINES if line.startswith("fastsample sample") and local(line)]
BENCHES = [line for line in LINES if line.startswith("fastsample bench") and local(line)]


def test_the_examples_are_found() -> None:
    assert len(DRAWING) >= 3
    assert SAMPLES
    assert BENCHES


@pytest.mark.parametrize("block", DRAWING, ids=lambda text: text[:40])
def test_a_python_example_draws_what_is_asked_for(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bundled model, with the recommended scheduler where the example sets none."""
    monkeypatch.chdir(ROOT)
    pipe = load_pipeline()
    pipe.scheduler = fastsample.HeavyBallScheduler.from_config(pipe.scheduler.config, timestep_grid="quadratic")
    torch.manual_seed(0)
    names: dict[str, Any] = {"fastsample": fastsample, "pipe": pipe, "prompt": PROMPT}
    exec(block, names)  # the README's own words
    assert fidelity([names["image"]], [PROMPT]) == 1


@pytest.mark.parametrize("line", SAMPLES)
def test_a_sample_example_draws_what_is_asked_for(run: Any, line: str) -> None:
    """For several seeds."""
    status, out, err = run(*shlex.split(line, comments=True)[1:], "--images", "4", "--json")
    assert status == 0, err
    made = json.loads(out)["images"]
    pictures = [Image.open(image["file"]) for image in made]
    assert fidelity(pictures, [image["prompt"] for image in made]) == 1


@pytest.mark.parametrize("line", BENCHES)
def test_a_bench_example_compares_what_draws(run: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sampler of it, on eight held-out prompts; the reference of few steps, since it is not looked at here."""
    for module in (reference, runner):
        monkeypatch.setattr(module, "STEPS", 10)
    status, _, err = run(
        *shlex.split(line, comments=True)[1:], "--prompts", "8", "--seeds", "1", "--out", "b", "--json"
    )
    assert status == 0, err
    for row in json.loads(Path("b/results.json").read_text()):
        assert row["prompts"] >= 0.85, row["arm"]


@pytest.mark.parametrize("doc", [fastsample.__doc__], ids=["fastsample"])
def test_the_scheduler_of_the_docstring_draws(doc: str) -> None:
    """At the pipeline's own steps and guidance."""
    pipe = load_pipeline()
    (line,) = (line.strip() for line in doc.splitlines() if "pipe.scheduler = " in line)
    exec(line, {"fastsample": fastsample, "pipe": pipe})
    prompts = [scene.caption for scene in sample_scenes(8, 7, held_out=True)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    assert fidelity(pipe(prompts, generator=generators).images, prompts) == 1


def fidelity(pictures: list[Any], prompts: list[str]) -> float:
    """The share of pictures in which the classifier finds all that the prompt says."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return prompt_fidelity(torch.from_numpy(stacked).movedim(-1, 1) / 255, prompts)["prompts"]
