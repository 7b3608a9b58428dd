"""The documents: the site builds without a warning, the README is short and its links and lines hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding_models import bundled_kind
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from documents import PAGES, REPOSITORY, ROOT
from told import TOLD, build

import fastsample
from fastsample.demo.language.loading import load_language_model

README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly and offline: a broken page, link, reference or docstring is an error."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(tmp_path / "trees")]
    done = subprocess.run([*command, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages <= {path.stem for path in (tmp_path / "site").glob("*.html")}
    for path in (tmp_path / "site").glob("*.html"):
        fetched = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"', path.read_text())
        assert not fetched, path.name  # a page needs nothing from elsewhere


def test_every_public_name_is_in_the_reference() -> None:
    listed = re.findall(r"^\.\. auto\w+:: (\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(fastsample.__all__) - {"__version__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_into_the_repository_hold(page: Path) -> None:
    """Each file or folder that a page names by the repository's address is there."""
    for link in re.findall(rf"(?:{REPOSITORY}|{RAW})[^)\s\"]*", page.read_text()):
        place = re.sub(rf"^{REPOSITORY}(/(blob|tree)/main)?/?|^{RAW}/main/", "", link).partition("#")[0]
        assert (ROOT / place).exists(), link


def test_the_readme_fits_a_screen_and_the_package_index() -> None:
    """At most 150 lines, and no link that needs the repository around it."""
    assert len(README.splitlines()) <= 150
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert len(links) >= 20
    assert all(link.startswith("https://") for link in links)
    pictures = re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", README)
    assert len(pictures) == 2
    assert all(picture.startswith(RAW) for picture in pictures)


LINES = dict(re.findall(r"^\| ([^|]+?) \| `([^`|]*fastsample\.[^`|]*)` \|$", README, re.MULTILINE))
"""Of the table "Your model": what to write for it."""
CLASSES = {
    "Stable Diffusion 1.5, 2.1": ["stable_diffusion", "stable_diffusion_2"],
    "SDXL": ["stable_diffusion_xl"],
    "Stable Diffusion 3, 3.5": ["stable_diffusion_3"],
    "Flux": ["flux"],
    "Qwen-Image": ["qwen_image"],
    "Wan 2.1, 2.2": ["wan", "wan_2_2"],
    "a sampler by its name in other programs": ["stable_diffusion", "flux"],
}
TEXT = ["LLaDA, Dream (`MaskedDiffusionPipeline`)", "LLaDA 2 (diffusers' `LLaDA2Pipeline`)"]


def test_every_line_of_the_table_is_tried() -> None:
    assert LINES.keys() == {*CLASSES, *TEXT}


@pytest.mark.parametrize(("model", "name"), [(model, name) for model, names in CLASSES.items() for name in names])
def test_a_line_of_the_table_runs(model: str, name: str) -> None:
    """On a tiny pipeline of the class: it samples by our scheduler, and ends on a finite image."""
    pipe, told = build(name), TOLD[name]
    names: dict[str, Any] = {"fastsample": fastsample, "pipe": pipe}
    run = eval(LINES[model], names) if " = " not in LINES[model] else exec(LINES[model], names)
    assert type(pipe.scheduler).__module__.startswith("fastsample.schedulers")
    call = {**told.size, **dict(told.extra), "num_inference_steps": 3, "output_type": "latent"}
    call |= {} if told.frames is None else {"num_frames": told.frames}
    latents = pipe("a red circle", generator=torch.Generator().manual_seed(0), **call)[0]
    assert torch.isfinite(torch.as_tensor(latents)).all()
    if run is not None:
        assert run.summary().rounds == (6 if model.startswith("Wan") else 3)  # two calls a step, in turn
        run.remove()
        assert type(pipe.scheduler).__module__.startswith("diffusers")


def test_the_lines_for_text_run() -> None:
    masked, diffusers_own = (LINES[model] for model in TEXT)
    pipe = fastsample.MaskedDiffusionPipeline(*load_language_model())
    pipe.set_progress_bar_config(disable=True)
    out = eval(
        masked.replace("gen_length=128", "gen_length=96"), {"fastsample": fastsample, "pipe": pipe, "prompt": "1+2"}
    )
    assert 0 < out.ledger.forward_calls < 48
    other = LLaDA2Pipeline(model=bundled_kind().float(), scheduler=BlockRefinementScheduler())
    exec(diffusers_own, {"fastsample": fastsample, "pipe": other})
    assert type(other.scheduler) is fastsample.FactorScheduler
