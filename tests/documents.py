"""The documents' snippets: which there are, what a shell line needs to be right, and stand-ins for checkpoints."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer.main
from decoding_models import bundled_kind
from diffusers import BlockRefinementScheduler, DiffusionPipeline, LLaDA2Pipeline
from test_tarflow import original_state
from told import build

from fastsample import tarflow
from fastsample.cli.main import app
from fastsample.decoding.pipeline import MaskedDiffusionPipeline

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
REPOSITORY = "https://github.com/fastsample/fastsample"
PARTS = ("{toctree}", "{image}", "{include}", "{eval-rst}", "{note}", "{tip}")
"""Blocks of a page that are no snippets."""
COMMAND = re.compile(r"fastsample \w+ -|python scripts/|scripts/|pip install|accelerate launch -m")
"""How what stands between backticks begins where it is a command line."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line on which it begins, its language and its text."""

    page: Path
    line: int
    language: str
    text: str


@functools.cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    """All fenced blocks of a page."""
    text = page.read_text()
    found = re.finditer(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```$", text, re.DOTALL | re.MULTILINE)
    return tuple(Block(page, text[: m.start()].count("\n") + 1, m[2], m[3]) for m in found)


def snippets(language: str) -> list[Block]:
    """The blocks of a language, of all pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def shell_lines(text: str) -> Iterator[str]:
    """The commands of a shell block, without comments, lines that a backslash continues joined."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield shlex.join(words)


def commands() -> list[str]:
    """Every command line of the documents: those of shell blocks, and those in the text between backticks."""
    said = []
    for page in PAGES:
        prose = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))
        said += [code for code in inline if COMMAND.match(code)]
    said += [line for block in snippets("bash") for line in shell_lines(block.text)]
    return list(dict.fromkeys(line.replace("--out ..", "--out results") for line in said))


# --- what is wrong with a command ------------------------------------------------------------------------


def parse(words: list[str]) -> None:
    """Let the command line take its arguments, without running it; an error of click's where it would refuse them."""
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(command.name or "fastsample", list(words), parent=context)
        if not hasattr(command, "resolve_command"):
            return
        _, command, words = command.resolve_command(context, list(context._protected_args) + list(context.args))


def check(line: str) -> None:
    """Raise where a command of the documents could not be what it says."""
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[0] in ("accelerate", "torchrun") and "-m" in words:
        words = words[words.index("-m") + 1 :]
    if words[0] == "python":
        words = words[1:]
    if words[0] == "fastsample":
        parse(words[1:])
    elif words[0].startswith("scripts/"):
        check_script(words)
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.search(r"fastsample\[(.*)\]", line)
        assert named is None or named[1] in extras, line
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if not word.startswith("-")), line
    else:
        assert words[0] in ("ln", "torchrun", "accelerate"), f"what is {words[0]!r}? {line}"


def check_script(words: list[str]) -> None:
    """Each option of a script is one that its file names."""
    path = ROOT / words[0]
    assert path.exists(), words[0]
    if path.is_dir():
        return
    text = path.read_text()
    known = set(re.findall(r"--[a-z][a-z0-9-]*", text))
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                arguments = [*node.args.args, *node.args.kwonlyargs]
                known |= {"--" + argument.arg.replace("_", "-") for argument in arguments}
    if path.name in ("demo", "gpu"):  # hand their arguments on
        known |= {"--steps", "--seeds", "--parts", "--smoke", "--seconds", "--list", "--out"}
    for word in words[1:]:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{words[0]} has no {word}"
        elif word.startswith("tests/"):
            assert (ROOT / word).exists(), word


# --- stand-ins for checkpoints ---------------------------------------------------------------------------


LANGUAGE = ROOT / "fastsample" / "demo" / "language"
CHECKPOINTS: dict[str, str] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "stable_diffusion",
    "stabilityai/stable-diffusion-xl-base-1.0": "stable_diffusion_xl",
    "stabilityai/stable-diffusion-3.5-medium": "stable_diffusion_3",
    "black-forest-labs/FLUX.1-dev": "flux",
    "Qwen/Qwen-Image": "qwen_image",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
}
"""Published checkpoints of the documents, and the tiny pipeline of the same class that stands in for each."""


ORIGINAL = tarflow.load_original


class StandIns:
    """Folders of tiny pipelines in place of checkpoints, each made once; `asked` are the names that were wanted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []

    def folder_of(self, name: str) -> Path:
        """The folder that stands in for a checkpoint; an error for one that is in no table here."""
        self.asked.append(name)
        if name == "GSAI-ML/LLaDA-8B-Instruct":
            return LANGUAGE
        if name == "inclusionAI/LLaDA2.0-mini":
            return self._saved(name, _llada2)
        return self._saved(name, lambda: build(CHECKPOINTS[name]))

    def _saved(self, name: str, make: Callable[[], Any]) -> Path:
        folder = self.folder / name.replace("/", "--")
        if not folder.exists():
            make().save_pretrained(folder)
        return folder

    def patch(self, monkeypatch: Any) -> None:
        """Let `from_pretrained`, of diffusers' pipelines and ours, find the stand-ins by the checkpoints' names."""
        monkeypatch.setattr(tarflow, "load_original", self._load_original)
        for kind in (DiffusionPipeline, MaskedDiffusionPipeline):
            monkeypatch.setattr(kind, "from_pretrained", self._standing_in(kind.from_pretrained.__func__))

    def _load_original(self, name: str) -> Any:
        """A checkpoint of TarFlow's authors, read by the true function from a small file of their format."""
        self.asked.append(name)
        file = self.folder / "afhq_model_2_64_2_1_0.07.pth"
        torch.manual_seed(0)
        torch.save(
            original_state(tarflow.TarFlowModel(4, 3, 2, 64, num_blocks=2, layers_per_block=1, noise_std=0.07)), file
        )
        return ORIGINAL(file)

    def _standing_in(self, true: Callable[..., Any]) -> Any:
        def from_pretrained(cls: type, name: Any, *arguments: Any, **options: Any) -> Any:
            folder = name if Path(name).exists() else self.folder_of(str(name))
            pipe = true(cls, folder, *arguments, **options)
            pipe.set_progress_bar_config(disable=True)
            return pipe

        return classmethod(from_pretrained)


def _llada2() -> Any:
    return LLaDA2Pipeline(model=bundled_kind().float(), scheduler=BlockRefinementScheduler())
