"""The documents' examples, run as they stand: what they draw on the bundled models is what is asked for."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from documents import PAGES, PARTS, ROOT, Block, StandIns, blocks_of, check, commands, parse, shell_lines, snippets
from PIL import Image

import fastsample
from fastsample.bench import reference, runner
from fastsample.demo.bundled import load_pipeline, prompt_fidelity
from fastsample.demo.language.sums import Sum
from fastsample.demo.scenes import sample_scenes
from fastsample.solvers import registry

PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks_of(page))]
LINES = list(dict.fromkeys(line for block in snippets("bash") for line in shell_lines(block.text)))
PROMPTS = ["a large red circle at the left on a white background", "a small blue 4 at the top on a grey background"]
"""In the file that a page's examples may read."""
RUN: dict[Path, int] = {}
"""Blocks of Python that were run, by page."""


def local(line: str) -> bool:
    """Whether an example is of a bundled model that draws: not of a hub's, nor of the language model."""
    return "/" not in line.partition("--model ")[2].partition(" ")[0] and "--decode" not in line


SAMPLES = [line for line in LINES if line.startswith("fastsample sample") and local(line)]
BENCHES = [line for line in LINES if line.startswith("fastsample bench") and local(line)]
QUICK = [line for line in LINES if re.match(r"fastsample (solvers|doctor|decode --prompt|tarflow sample)", line)]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny pipelines that stand in for checkpoints lie."""
    return tmp_path_factory.mktemp("checkpoints")


def test_the_examples_are_found() -> None:
    """No block is of a language that nobody looks at, and none is lost."""
    languages = {block.language for page in PAGES for block in blocks_of(page)}
    assert languages <= {"python", "text", "bash", *PARTS}
    assert len(snippets("python")) >= 30
    assert len(LINES) >= 25
    assert len(commands()) >= 50
    for page in PAGES:
        assert len(re.findall(r"^ *```\S", page.read_text(), re.MULTILINE)) == len(blocks_of(page)), page.name


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.stem)
def test_the_python_of_a_page_runs(
    page: Path, folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, references: Path
) -> None:
    """All its blocks in order, in a folder of its own, each printing the block of text behind it, if there is one.

    Pictures of the bundled models show what was asked for.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FASTSAMPLE_CACHE", str(references))
    StandIns(folders).patch(monkeypatch)
    monkeypatch.setattr(registry, "_SOLVERS", dict(registry.available()))  # a page may add one, for its time alone
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = ""
    for block in blocks_of(page):
        if block.language == "text":
            assert without_seconds(block.text) == without_seconds(printed), f"{page.name}, line {block.line}"
        if block.language != "python":
            continue
        before = names.get("image")
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as out:
            run_block(block, names)
        printed = out.getvalue()
        image = names.get("image")
        if image is not before and getattr(image, "size", None) == (32, 32):
            prompt = names.get("prompt", PROMPTS[0])
            assert fidelity([image], [prompt]) == 1, f"{page.name}, line {block.line}"
        RUN[page] = RUN.get(page, 0) + 1
    assert RUN[page] == sum(block.language == "python" for block in blocks_of(page))


EXAMPLES = {
    "sdxl": ["--steps", "4", "--own-steps", "6", "--guided", "0.5"],
    "flux": ["--steps", "4", "--own-steps", "6", "--size", "16", "--parallel"],
    "wan": [
        "--steps",
        "4",
        "--own-steps",
        "6",
        "--guided",
        "0.5",
        "--height",
        "16",
        "--width",
        "16",
        "--frames",
        "5",
    ],
    "llada": ["--prompt", Sum.from_text("123+45+678+901+234").prompt, "--length", "96", "--block", "96"],
}
"""The scripts of examples/, and arguments for the small models that stand in for their checkpoints."""


def test_every_example_is_tried() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(
    name: str, folders: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its checkpoint's name on, and says what was gained."""
    monkeypatch.chdir(tmp_path)
    stand_ins = StandIns(folders)
    stand_ins.patch(monkeypatch)
    main = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    app = typer.Typer()
    app.command()(main)
    app(EXAMPLES[name], standalone_mode=False)
    said = capsys.readouterr().out
    assert len(stand_ins.asked) == 1
    if name == "llada":
        fast, slow = (int(count) for count in re.findall(r": (\d+) forwards", said))
        assert fast < slow
        assert said.count("answer:1981") == 2
        return
    rounds = 6 if name == "wan" else 4  # guidance by a second call, in half of the steps
    assert re.search(rf"1 call: \d+ evaluations in {rounds} rounds", said), said
    drawn = sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".gif"))
    assert len(drawn) == (3 if name == "flux" else 2), drawn
    assert Image.open(drawn[0]).size == (16, 16)


def without_seconds(text: str) -> str:
    """What a machine's speed has no part in."""
    return re.sub(r"\d+\.\d+ s\b", "# s", text).strip()


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run a block of a page in its names; errors name the page and the line."""
    code = compile("\n" * block.line + block.text, str(block.page), "exec")
    exec(code, names)


@pytest.mark.parametrize("line", commands())
def test_a_command_is_one(line: str) -> None:
    """Of a shell block or in the text: there is such a script, and its options are taken."""
    check(line)


@pytest.mark.parametrize(
    "line",
    [
        "fastsample sample --step 3",
        "fastsample draw",
        "scripts/absent.py",
        "python scripts/tune_mixture.py --absent 3",
        "pip install fastsample[absent]",
        "rm -r results",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"step|draw|absent|rm"):
        check(line)


def test_the_parser_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    parse(["solvers", "--names"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("line", SAMPLES)
def test_a_sample_example_draws_what_is_asked_for(run: Any, line: str) -> None:
    """For several seeds."""
    status, out, err = run(*shlex.split(line)[1:], "--images", "4", "--json")
    assert status == 0, err
    made = json.loads(out)["images"]
    pictures = [Image.open(image["file"]) for image in made]
    assert fidelity(pictures, [image["prompt"] for image in made]) == 1


@pytest.mark.parametrize("line", BENCHES)
def test_a_bench_example_compares_what_draws(run: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sampler of it, on eight held-out prompts; the reference of few steps, since it is not looked at here."""
    for module in (reference, runner):
        monkeypatch.setattr(module, "STEPS", 10)
    status, _, err = run(*shlex.split(line)[1:], "--prompts", "8", "--seeds", "1", "--out", "b", "--json")
    assert status == 0, err
    for row in json.loads(Path("b/results.json").read_text()):
        assert row["prompts"] >= 0.85, row["arm"]


@pytest.mark.parametrize("line", QUICK)
def test_a_quick_example_runs(run: Any, line: str) -> None:
    status, out, err = run(*shlex.split(line)[1:])
    assert status == 0, err
    assert out.strip()


@pytest.mark.parametrize("doc", [fastsample.__doc__], ids=["fastsample"])
def test_the_scheduler_of_the_docstring_draws(doc: str) -> None:
    """At the pipeline's own guidance."""
    pipe = load_pipeline()
    (line,) = (line.strip() for line in doc.splitlines() if "pipe.scheduler = " in line)
    exec(line, {"fastsample": fastsample, "pipe": pipe})
    prompts = [scene.caption for scene in sample_scenes(8, 7, held_out=True)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(8)]
    assert fidelity(pipe(prompts, num_inference_steps=20, generator=generators).images, prompts) == 1


def fidelity(pictures: list[Any], prompts: list[str]) -> float:
    """The share of pictures in which the classifier finds all that the prompt says."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return prompt_fidelity(torch.from_numpy(stacked).movedim(-1, 1) / 255, prompts)["prompts"]
