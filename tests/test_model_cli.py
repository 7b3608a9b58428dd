"""`fastsample bench` and `sample` on saved models of several kinds: files, names, sizes, one line on wrong input."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from told import TOLD, build

from fastsample.bench import estimate, reference, report, runner
from fastsample.bench.cases import parse_arm, recommended_arm
from fastsample.bench.report import Summary
from fastsample.cli.engines.sample import write
from fastsample.cli.files import place
from fastsample.names.recommended import RECOMMENDED
from fastsample.names.samplers import A1111, COMFYUI
from fastsample.solvers import available

PROMPTS = "a red circle\na circle\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where a told pipeline is saved, once."""
    root = tmp_path_factory.mktemp("models")

    def folder(name: str) -> Path:
        if not (root / name).exists():
            build(name).save_pretrained(root / name)
        return root / name

    return folder


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference of few steps."""
    for module in (reference, runner):
        monkeypatch.setattr(module, "STEPS", 10)


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("name", ["flux", "qwen_image", "stable_diffusion_xl", "wan", "ltx"])
def test_bench_end_to_end(run: Any, folders: Any, tmp_path: Path, name: str) -> None:
    """With its defaults: the recommended setting beside the own scheduler. Again, and nothing is new."""
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    command = ["bench", "--model", str(folders(name)), *TOLD[name].options, "--prompts", "prompts.txt"]
    command += ["--steps", "2", "--seeds", "1", "--out", "b", "--csv", "--json", "--markdown"]
    status, _, err = run(*command, "--plot")
    assert status == 0, err
    rows = json.loads((tmp_path / "b" / "results.json").read_text())
    arms = {row["arm"] for row in rows}
    own = json.loads((folders(name) / "model_index.json").read_text())["scheduler"][1].removesuffix("Scheduler")
    kind = "vp" if name == "stable_diffusion_xl" else "flow"
    best = recommended_arm(kind, rows[0]["guidance"], rows[0]["steps"])
    assert {best.label, f"diffusers {own}"} <= arms
    assert all(row["finite"] and row["latent_rms"] < 2 for row in rows)
    assert f"{len(rows)} of {len(rows)} cases to run, about" in err
    assert sum(f"/{len(rows)}  " in line for line in err.splitlines()) == len(rows)  # a line for each case
    before = sorted(path.name for path in (tmp_path / "b").iterdir())
    written = ["images.png", "pareto.png", "pictures", "pictures.jsonl", "results.csv", "results.json"]
    assert before == [*written, "results.jsonl", "results.md"]
    assert run(*command)[0] == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == before


@pytest.mark.parametrize("name", ["flux", "wan", "z_image"])
def test_sample_overwrites_nothing(run: Any, folders: Any, tmp_path: Path, name: str) -> None:
    command = ["sample", "--model", str(folders(name)), *TOLD[name].options, "--prompt", "a red circle"]
    command += ["--steps", "2", "--seed", "3", "--images", "2", "--out", "s", "--json"]
    status, out, err = run(*command)
    assert status == 0, err
    first = {path: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    status, out, _ = run(*command, "--guidance", "2")
    made = json.loads(out)["images"]
    assert [image["seed"] for image in made] == [3, 4]
    suffix = ".png" if TOLD[name].frames is None else ".webp"
    assert [Path(image["file"]).name for image in made] == [f"prompt000-seed{n}-2{suffix}" for n in (3, 4)]
    assert all(path.read_bytes() == content for path, content in first.items())
    assert len(list((tmp_path / "s").iterdir())) == 2 * len(first)
    with Image.open(made[0]["file"]) as picture:
        assert picture.size == (TOLD[name].size["width"], TOLD[name].size["height"])
        assert getattr(picture, "n_frames", 1) == (TOLD[name].frames or 1)


def _by_turns(cases: Iterable[str]) -> list[tuple[str, str]]:
    """Each case with one of the two commands, which share what is tried here."""
    return [(case, ("sample", "bench")[index % 2]) for index, case in enumerate(cases)]


WRONG = {
    "height": ("stable_diffusion_xl", ["--height", "13"], "divisible by"),
    "size 0": ("stable_diffusion_xl", ["--width", "0"], "--width = 0"),
    "frames of an image": ("stable_diffusion_xl", ["--frames", "5"], "makes images, not videos"),
    "other frames": ("wan", ["--height", "16", "--width", "16", "--frames", "6"], "divisible by 4"),
    "a resized size": ("flux", ["--height", "15", "--width", "16"], "divisible by 4"),
    "argument": ("flux", ["--call", "max_lenght=3"], "argument max_lenght"),
    "no argument": ("flux", ["--call", "max_length"], "write key=value"),
    "useless negative": ("qwen_image", ["--guidance", "1", "--negative-prompt", "a circle"], "does nothing"),
    "offload": ("flux", ["--offload", "model", "--device", "cpu"], "--offload = 'model' with --device = 'cpu'"),
    "unknown offload": ("flux", ["--offload", "gpu"], "--offload = 'gpu'"),
    "gate on joint attention": ("flux", [*TOLD["flux"].options, "--tgate", "1", "--guidance", "3"], "attention"),
}


@pytest.mark.parametrize(("case", "command"), _by_turns(WRONG))
def test_wrong_input_for_a_model_is_one_line(
    run: Any, folders: Any, tmp_path: Path, case: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any evaluation: no network is called."""
    name, options, words = WRONG[case]
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    called: list[Any] = []
    for kind in (diffusers.UNet2DConditionModel, diffusers.FluxTransformer2DModel, diffusers.WanTransformer3DModel):
        monkeypatch.setattr(kind, "forward", _noted(kind.forward, called))
    out = ["--out", "o", "--prompts", "prompts.txt", "--steps", "2"]
    status, _, err = run(command, "--model", str(folders(name)), *out, *options)
    lines = [line for line in err.splitlines() if not line.startswith("left out")]
    assert (status, len(lines), called) == (2, 1, [])
    assert words in lines[0]


def _noted(forward: Any, called: list[Any]) -> Any:
    @functools.wraps(forward)
    def noted(*args: Any, **kwargs: Any) -> Any:
        called.append(forward)
        return forward(*args, **kwargs)

    return noted


def broken(folder: Path, kind: str) -> str:
    """Break a saved pipeline; the words that say so."""
    if kind == "no tokenizer folder":
        shutil.rmtree(folder / "tokenizer")
        return "could not be loaded"
    if kind == "no tokenizer":
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"tokenizer": [None, None]}))
        return "expected"
    if kind == "cut weights":
        (weights,) = (folder / "transformer").glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:1000])
        return "could not be loaded"
    if kind == "no weights":
        (weights,) = (folder / "vae").glob("*.safetensors")
        weights.unlink()
        return "could not be loaded"
    if kind == "wrong weights":
        config = json.loads((folder / "transformer" / "config.json").read_text())
        (folder / "transformer" / "config.json").write_text(json.dumps(config | {"attention_head_dim": 4}))
        return "could not be loaded"
    (folder / "model_index.json").write_text("{ not json")
    return "could not be loaded"


BROKEN = ("no tokenizer folder", "no tokenizer", "cut weights", "no weights", "wrong weights", "no index")


@pytest.mark.parametrize(("kind", "command"), _by_turns(BROKEN))
def test_a_corrupt_folder_is_one_line(run: Any, folders: Any, tmp_path: Path, kind: str, command: str) -> None:
    shutil.copytree(folders("flux"), tmp_path / "model")
    words = broken(tmp_path / "model", kind)
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    options = [*TOLD["flux"].options, "--steps", "2", "--prompts", "prompts.txt"]
    status, _, err = run(command, "--model", str(tmp_path / "model"), *options)
    assert (status, err.count("\n")) == (2, 1), err
    assert words in err


@pytest.mark.parametrize(("name", "reason"), [("flux_img2img", "starts from image"), ("stable_audio", "makes sound")])
@pytest.mark.parametrize("command", ["sample", "bench"])
def test_other_pipelines_are_refused(
    run: Any, folders: Any, tmp_path: Path, name: str, reason: str, command: str
) -> None:
    if name == "stable_audio":
        pytest.importorskip("torchsde")
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    status, _, err = run(command, "--model", str(folders(name)), "--prompts", "prompts.txt", "--steps", "2")
    assert (status, err.count("\n")) == (2, 1)
    assert reason in err
    assert not list(tmp_path.glob("results/*/*"))


def test_every_name_that_people_type_is_a_solver() -> None:
    names = [*A1111, *COMFYUI, *available(), "DPM++ 2M SDE Karras", "k_euler", "UniPCMultistep", "DDIMScheduler"]
    for name in names:
        arm = parse_arm(name)
        assert arm.scheduler({}).config
        assert arm.peer == (name in ("UniPCMultistep", "DDIMScheduler"))
    assert parse_arm("dpmpp_2m", grid="quadratic").scheduler({}).config.timestep_grid == "quadratic"
    assert parse_arm("ghvb:order=2,grid=beta", grid="karras").label == "ghvb(order=2) beta"
    for wrong, near in (("DPM++ 2M Karas", "DPM++ 2M Karras"), ("ghvbb", "ghvb")):
        with pytest.raises(ValueError, match="did you mean") as caught:
            parse_arm(wrong)
        assert repr(near) in str(caught.value)
    for kind, setting in RECOMMENDED.items():
        assert recommended_arm(kind).name == setting.solver


def test_places_are_taken_once(tmp_path: Path) -> None:
    """By threads that write at once, too; the same content is kept once where that is asked for."""
    threads = [
        threading.Thread(target=place, args=(tmp_path, "a.png", lambda path, n=n: path.write_text(str(n % 2))))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", *(f"a-{n}.png" for n in range(2, 9))}
    assert place(tmp_path, "a.png", lambda path: path.write_text("0"), again=False).read_text() == "0"
    assert len(list(tmp_path.iterdir())) == 8
    with pytest.raises(OSError, match="full"):
        place(tmp_path, "a.png", _failing)
    assert len(list(tmp_path.iterdir())) == 8
    (tmp_path / "b.png").mkdir()
    assert place(tmp_path, "b.png", lambda path: path.write_text("0"), again=False).name == "b-2.png"


def _failing(path: Path) -> None:
    path.write_text("half")
    raise OSError("disk full")


def row(arm: str, steps: int, error: float | None) -> Summary:
    found = None if error is None else (error, 0.0)
    return Summary(arm, steps, 3.0, steps, 1, error is not None, {"latent_rms": found})


def test_a_panel_shows_eight_with_the_recommended_one() -> None:
    ours = [row(f"solver {n}", 5, 0.1 + n / 100) for n in range(9)] + [row("recommended", 5, 9.0)]
    peers = [row(f"diffusers {n}", 5, 0.5 - n / 100) for n in range(4)]
    shown = report.foremost([*ours, *peers], keep="recommended")
    assert len(shown) == 8
    assert shown == [*(f"solver {n}" for n in range(4)), "recommended", *(f"diffusers {n}" for n in (1, 2, 3))]
    assert report.foremost([*ours[:2], row("diverged", 5, None)]) == ["solver 0", "solver 1", "diverged"]
    assert report.enough_steps([row("a", 5, 0.3), row("a", 8, 0.09), row("b", 20, 0.01)]) == 8
    assert report.enough_steps([row("a", 5, 0.3), row("b", 20, None)]) == 20


def test_the_clock_learns_from_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: now)
    clock = estimate.Clock([10.0, 20.0, 30.0], _started=0.0)
    assert clock.left == "60 s"
    now = 20.0  # twice as long as expected
    clock.tick()
    assert clock.left == "2 min"
    now = 60.0
    clock.tick()
    assert clock.left == "60 s"


def test_video_frames_are_written_without_loss(tmp_path: Path) -> None:
    frames = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    path = write(frames, tmp_path, "video")
    with Image.open(path) as video:
        assert video.n_frames == 3
        for index in range(3):
            video.seek(index)
            want = (frames[index] * 255).round().byte().movedim(0, -1).numpy()
            np.testing.assert_array_equal(np.asarray(video.convert("RGB")), want)
