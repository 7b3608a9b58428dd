"""Several processes: rows shared among two of them, prompts split between them; with gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipelines import quiet, stable_diffusion

import fastsample as fs

TESTS = Path(__file__).parent


def launched(*command: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """`command` run by torchrun in several processes on this machine."""
    return alone("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command)


def alone(*command: str) -> subprocess.CompletedProcess[str]:
    """`command` run by Python in one process, with one thread, as in each of several: others round differently."""
    paths = [str(TESTS.parent), str(TESTS.parent / "kernels"), str(TESTS)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("WORLD_SIZE", "RANK")}
    run = [sys.executable, *command]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=240, check=False)


def shared(case: str, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found."""
    result = launched(str(TESTS / "row_shares.py"), case, str(folder / case))
    assert result.returncode == 0, result.stderr[-2000:]
    return [torch.load(folder / f"{case}.{rank}", weights_only=True) for rank in range(2)]


def test_two_processes_give_the_image_of_one(tmp_path: Path) -> None:
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
    one, other = shared("guided", tmp_path)
    assert torch.equal(one["image"], other["image"])
    torch.testing.assert_close(one["image"], expected, rtol=1e-4, atol=1e-4)
    for found in (one, other):
        assert found["fallback"] == ""
        # guidance doubles the rows, two sweeps check one more; the plain step is everyone's
        assert found["rows"] == 2 + (2 * found["evaluated"] + 2 * 2) / 2


def test_a_controlnet_is_shared_too(tmp_path: Path) -> None:
    one, other = shared("controlnet", tmp_path)
    assert (one["fallback"], other["fallback"]) == ("", "")
    assert torch.equal(one["image"], other["image"])


def test_other_seeds_in_other_processes_are_refused_everywhere(tmp_path: Path) -> None:
    for found in shared("seeds", tmp_path):
        assert "the processes sample different images" in found["fallback"]


def test_a_single_process_has_nobody_to_share_with() -> None:
    with pytest.raises(ValueError, match="distributed = True in a single process"):
        fs.ParallelSampler(quiet(stable_diffusion()), distributed=True)


def test_prompts_are_split_between_processes(tmp_path: Path) -> None:
    """`fastsample sample --prompts`: every prompt once, the same images as from one process, one report."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\na green circle\n")
    options = ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "3", "--seed", "1", "--json"]
    command = ["-m", "fastsample", "sample", *options]
    result = launched(*command, "--out", str(tmp_path / "two"))
    assert result.returncode == 0, result.stderr[-2000:]
    told = json.loads(result.stdout)
    assert [image["prompt"] for image in told["images"]] == ["a red circle", "a blue square", "a green circle"]
    assert alone(*command, "--out", str(tmp_path / "one")).returncode == 0
    for name in ("prompt000-seed1.png", "prompt001-seed1.png", "prompt002-seed1.png", "contact-sheet.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_two_processes_tune_together(tmp_path: Path) -> None:
    """Each evaluates about half of the rows, and both find the same preset."""
    one, other = shared("tune", tmp_path)
    assert one["preset"] == other["preset"]
    preset = fs.load_preset(one["preset"])
    spent = 2 * sum(entry.calls for entry in preset.entries)  # guided: two rows each
    assert one["rows"] == other["rows"]
    assert one["rows"] < 0.8 * (spent + 2 * 41 * (3 + 8 + 16))
