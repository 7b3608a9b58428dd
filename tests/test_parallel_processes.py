"""Several processes: rows shared among two of them, prompts split between them; with gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipelines import quiet, stable_diffusion

import fastsample as fs

TESTS = Path(__file__).parent
CASES = ("guided", "controlnet", "seeds", "tune")

PROMPTS = ["a red circle", "a blue square", "a green circle"]


@dataclass(frozen=True)
class Shared:
    """What each of two processes found, by case; what each printed for the command; and the command's options."""

    found: dict[str, list[dict[str, Any]]]
    printed: list[str]
    options: list[str]
    folder: Path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """`row_shares.py`, run by torchrun in two processes on this machine."""
    folder = tmp_path_factory.mktemp("shares")
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    options = ["sample", "--prompts", str(folder / "prompts.txt"), "--steps", "3", "--seed", "1", "--json"]
    paths = [str(TESTS.parent), str(TESTS.parent / "kernels"), str(TESTS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("WORLD_SIZE", "RANK")}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run += [str(TESTS / "row_shares.py"), str(folder), *options, "--out", str(folder / "two")]
    result = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    found = {case: [torch.load(folder / f"{case}.{rank}", weights_only=True) for rank in range(2)] for case in CASES}
    return Shared(found, [(folder / f"command.{rank}").read_text() for rank in range(2)], options, folder)


def test_two_processes_give_the_image_of_one(shared: Shared) -> None:
    """A stochastic scheduler with guidance; each process evaluates half of the rows of a sweep."""
    pipe = quiet(stable_diffusion())
    pipe.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    inputs = {
        "prompt": "a small red circle",
        "num_inference_steps": 10,
        "height": 8,
        "width": 8,
        "guidance_scale": 3.0,
    }
    expected = pipe(**inputs, output_type="latent", generator=torch.Generator().manual_seed(0)).images
    one, other = shared.found["guided"]
    assert torch.equal(one["image"], other["image"])
    torch.testing.assert_close(one["image"], expected, rtol=1e-4, atol=1e-4)
    for found in (one, other):
        assert found["fallback"] == ""
        # guidance doubles the rows, two sweeps check one more; the plain step is everyone's
        assert found["rows"] == 2 + (2 * found["evaluated"] + 2 * 2) / 2


def test_a_controlnet_is_shared_too(shared: Shared) -> None:
    one, other = shared.found["controlnet"]
    assert (one["fallback"], other["fallback"]) == ("", "")
    assert torch.equal(one["image"], other["image"])


def test_other_seeds_in_other_processes_are_refused_everywhere(shared: Shared) -> None:
    for found in shared.found["seeds"]:
        assert "the processes sample different images" in found["fallback"]


def test_a_single_process_has_nobody_to_share_with() -> None:
    with pytest.raises(ValueError, match="distributed = True in a single process"):
        fs.ParallelSampler(quiet(stable_diffusion()), distributed=True)


def test_prompts_are_split_between_processes(shared: Shared, tmp_path: Path, run: Any) -> None:
    """`fastsample sample --prompts`: every prompt once, the same images as from one process, one report."""
    assert shared.printed[1] == ""
    assert [image["prompt"] for image in json.loads(shared.printed[0])["images"]] == PROMPTS
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of several processes: others round differently
    try:
        assert run(*shared.options, "--out", str(tmp_path))[0] == 0
    finally:
        torch.set_num_threads(threads)
    for name in ("prompt000-seed1.png", "prompt001-seed1.png", "prompt002-seed1.png", "contact-sheet.png"):
        assert (shared.folder / "two" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_two_processes_tune_together(shared: Shared) -> None:
    """Each evaluates about half of the rows, and both find the same preset."""
    one, other = shared.found["tune"]
    assert one["preset"] == other["preset"]
    preset = fs.load_preset(one["preset"])
    spent = 2 * sum(entry.calls for entry in preset.entries)  # guided: two rows each
    assert one["rows"] == other["rows"]
    assert one["rows"] < 0.8 * (spent + 2 * 41 * (3 + 8 + 16))
