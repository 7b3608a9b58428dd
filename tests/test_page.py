"""The page of a benchmark: what it says, that it needs nothing else, and that text of others stays text."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsample.bench import album as albums
from fastsample.bench import style
from fastsample.bench.album import Album, reference_key
from fastsample.bench.naming import plain_name, rule_name
from fastsample.bench.page import samplers
from fastsample.bench.record import Record

EVIL = "a <script>document.title='ran'</script> \"quoted\" & $\\frac{1}$ </title> circle"
BEST = "hb-dpmpp-2m quadratic"
ERRORS = {BEST: 0.1, "dpmpp-2m": 0.2, "diffusers DDIM": 0.4, EVIL: 0.8}
STEPS, SEEDS = (5, 10, 20), (0, 1)


def result(arm: str, steps: int, seed: int, **changed: Any) -> dict[str, Any]:
    """As a benchmark records it: the error halves as the steps double."""
    name, _, grid = arm.removeprefix("diffusers ").partition(" ") if arm != EVIL else (EVIL, "", "")
    told = {"arm": arm, "solver": name, "grid": grid or None, "options": {}, "gate": None, "parallel": None}
    told |= {"source": "diffusers" if "diffusers" in arm else "fastsample", "kind": "vp", "guidance": 3.0}
    measured = {"nfe": 2.0 * steps, "finite": True, "latent_rms": ERRORS[arm] * 5 / steps * (1 + 0.02 * seed)}
    told |= {"steps": steps, "seed": seed, "prompts_count": 3, "environment": {"device": "CPU Test", "threads": 2}}
    key = f"abc {json.dumps([arm, steps, 3.0, seed])}"
    return {
        "key": key,
        **told,
        "command": f"fastsample bench --solver '{EVIL}'",
        **measured,
        "seconds": 0.5,
        **changed,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of four arms with pictures: brightness is the arm's error, the reference is black."""
    path = tmp_path_factory.mktemp("bench")
    record, kept = Record(path / "results.jsonl"), Album(path)
    prompts = [EVIL, "a red circle", "a blue square"]
    for steps in STEPS:
        for seed in SEEDS:
            for arm, error in ERRORS.items():
                line = record.append(result(arm, steps, seed))
                pictures = torch.full((3, 3, 16, 16), error * 5 / steps)
                kept.keep(line["key"], pictures, prompts, arm=arm, steps=steps, guidance=3.0, seed=seed)
            kept.keep(reference_key("abc", 3.0, seed), torch.zeros(3, 3, 16, 16), prompts, arm="reference", seed=seed)
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    results = list(Record(folder / "results.jsonl").results.values())
    return samplers.page(results, Album(folder), best=BEST).html()


class Parsed(HTMLParser):
    """The tags with their attributes, the text outside scripts and styles, and what was never closed."""

    VOID = {"meta", "input", "br", "img", "link"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.words.append(data)


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    parsed = Parsed(page)
    assert parsed.open == []
    for tag, attributes in parsed.tags:
        assert tag not in {"link", "iframe", "object", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "action", "data"}:
                assert value is not None
                assert value.startswith(("#", "data:")), (tag, name, value[:40])
    outside = re.sub(r"data:image/webp;base64,[A-Za-z0-9+/=]+", "", page)
    assert "://" not in outside
    assert "@import" not in outside
    assert not re.search(r"url\((?!#)", outside)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_text_of_others_is_text(page: str) -> None:
    parsed = Parsed(page)
    assert sum(tag == "script" for tag, _ in parsed.tags) == 2  # the data, and the page's own
    assert "<script>document" not in page
    data = json.loads(parsed.scripts[0])
    assert data["prompts"][0] == EVIL
    words = "".join(parsed.words)
    assert EVIL in words
    policy = next(own["content"] for tag, own in parsed.tags if own.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_the_summary_says_who_is_best_and_what_that_saves(page: str) -> None:
    words = " ".join("".join(Parsed(page).words).split())
    best = "heavy-ball DPM-Solver++ 2M, quadratic grid (recommended) has the least error"
    assert f"10 evaluations (5 steps): {best}, 0.101 ± 0.001" in words
    assert "the best of diffusers', diffusers DDIM, has 0.404 ± 0.006 and takes 10 to 20 steps to be as near" in words
    assert "is not as near with 20 steps, the most that were run" in words
    assert "CPU Test, 2 threads" in words


def test_what_diverged_is_said_and_plotted_around() -> None:
    """Of an arm, of all at some steps, and of everything."""
    some = [result(arm, steps, 0) for arm in ERRORS for steps in STEPS]
    for gone in ({"dpmpp-2m"}, {"diffusers DDIM"}, set(ERRORS)):
        own = [{**line, "latent_rms": None, "finite": False} if line["arm"] in gone else line for line in some]
        words = "".join(Parsed(samplers.page(own, best=BEST).html()).words)
        assert "diverged" in words
        assert ("every sampler diverged" in words) == (gone == set(ERRORS))


def test_results_of_other_runs_are_left_out_and_said() -> None:
    older = [result("dpmpp-2m", 5, 0, key="older x")]
    words = "".join(Parsed(samplers.page([*older, result(BEST, 5, 0)]).html()).words)
    assert "holds 1 results of other prompts" in words
    assert "No pictures" in words


def test_pictures_are_within_their_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole groups are left out, the last seeds first, so that all arms of a place are there or none."""
    results = list(Record(folder / "results.jsonl").results.values())
    whole = samplers.gallery_of(results, Album(folder), BEST)
    assert whole is not None
    assert len(whole.images) == len(STEPS) * len(SEEDS) * len(ERRORS) + len(SEEDS)
    sizes = sum(len(Path(file).read_bytes()) for file in (folder / "pictures").glob("*.webp"))
    monkeypatch.setattr(samplers, "BOUND", sizes // 2)
    half = samplers.gallery_of(results, Album(folder), BEST)
    assert half is not None
    assert 0 < len(half.images) < len(whole.images)
    assert "left out" in half.note
    for seed in SEEDS:
        for steps in STEPS:
            assert len({f"3|{seed}|{steps}|{arm}" in half.places for arm in range(len(ERRORS))}) == 1


def test_an_album_keeps_small_pictures_of_the_first_prompts(tmp_path: Path) -> None:
    pictures = torch.rand(12, 3, 300, 600)
    pictures[0] = torch.nan
    Album(tmp_path).keep("a/../key", pictures, [f"prompt {number}" for number in range(12)])
    strip = Album(tmp_path).get("a/../key")
    assert strip is not None
    assert (len(strip.prompts), strip.width, strip.height) == (albums.PROMPTS, albums.SIDE, albums.SIDE // 2)
    assert [path.parent.name for path in tmp_path.rglob("*.webp")] == ["pictures"]
    shutil.rmtree(tmp_path / "pictures")
    assert Album(tmp_path).get("a/../key") is None  # said to be there, and is not


def test_names_beside_each_other_do_not_overlap() -> None:
    """In order, within the panel, and as near to where they belong as that allows."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 8):
        wanted, tall = rng.uniform(0, 30, count), rng.uniform(5, 15, count)
        placed = np.array(style.spread_out(wanted, tall, 0, 200))
        order = np.argsort(wanted, kind="stable")
        edges = np.stack([placed - tall / 2, placed + tall / 2])[:, order]
        assert (edges[0, 1:] >= edges[1, :-1] - 1e-9).all()
        assert edges.min() >= -1e-9
        assert edges.max() <= 200 + 1e-9
    assert style.spread_out([10, 60, 120], [5, 5, 5], 0, 200) == [10, 60, 120]


def test_ticks_have_no_exponents() -> None:
    assert [style.decimal(value) for value in (1e-5, 0.02, 0.5, 1.0, 200.0)] == ["0.00001", "0.02", "0.5", "1", "200"]


def test_names_are_those_of_papers() -> None:
    told = {"arm": "ghvb(order=2,beta=0.8) karras secant 16 0.01", "solver": "ghvb", "grid": "karras"}
    told |= {"options": {"order": 2, "beta": 0.8}, "parallel": "secant 16 0.01"}
    assert plain_name(told) == "GHVB, order 2, beta 0.8, karras grid, secant sweeps, 16 steps at once, tolerance 0.01"
    assert plain_name({"arm": "diffusers DPMSolverMultistep", "solver": "DPMSolverMultistep"}) == (
        "diffusers DPM-Solver++ 2M"
    )
    assert plain_name({"arm": "something else", "solver": "ddim"}) == "something else"
    assert rule_name("lrd:mixing=0+threshold:confidence=0.9") == "lrd, mixing 0 + threshold, confidence 0.9"


def test_a_page_of_a_folder_and_what_has_none(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("report", str(folder), "--out", "new/page.html")
    assert (status, out) == (0, "page: new/page.html\n")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").count("data:image/webp") > len(STEPS)
    (tmp_path / "new" / "page.html").write_text("another one")
    assert run("report", str(folder), "--out", "new/page.html")[1] == "page: new/page-2.html\n"  # none is overwritten
    folders = {
        "empty": "",
        "other": '{"key": "a b", "tokens": 1}\n',
        "odd": json.dumps(result(BEST, 5, 0, nfe="ten")),
    }
    for name, text in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.jsonl").write_text(text)
    for words, said in (
        (["missing"], "has no results.jsonl"),
        *(([name], "has no results of `fastsample bench`") for name in folders),
        ([str(folder), "--out", "page.txt"], "ends in .html"),
        ([str(folder), "--out", "new"], "ends in .html"),
    ):
        status, _, err = run("report", *words)
        assert status == 2
        assert said in err
        assert err.count("\n") == 1
