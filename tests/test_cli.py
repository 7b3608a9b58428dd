"""The command line as a user meets it: what it prints and writes, and one line on wrong input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pipelines
import pytest
from PIL import Image

from fastsample.solvers import available

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    pipelines.stable_diffusion().save_pretrained(path)
    return path


def test_a_folder_of_something_else_is_refused(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    status, _, err = run("sample", "--model", str(tmp_path / "model"), "--prompt", "a red circle")
    assert (status, err.count("\n")) == (2, 1)
    assert "could not be loaded" in err


def test_sample_writes_images_and_a_contact_sheet(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = [
        "--prompt",
        "a red circle",
        "--prompt",
        "a small circle",
        "--seed",
        "3",
        "--seed",
        "4",
        "--steps",
        "3",
    ]
    out_folder = str(tmp_path / "out")
    status, out, _ = run(
        "sample",
        "--model",
        str(folder),
        *arguments,
        "--solver",
        "ghvb",
        "--option",
        "order=3",
        "--out",
        out_folder,
        "--json",
    )
    assert status == 0
    made = json.loads(out)
    assert [image["seed"] for image in made["images"]] == [3, 4, 3, 4]
    assert all(image["nfe"] == 6 and Path(image["file"]).is_file() for image in made["images"])
    assert Path(made["contact_sheet"]).is_file()


def test_bench_writes_everything_and_resumes(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "prompts.txt").write_text("a red circle\na small circle\n")
    command = ["bench", "--model", str(folder), "--prompts", "prompts.txt", "--solver", "ddim", "--solver", "ghvb"]
    command += ["--peer", "UniPCMultistep", "--steps", "2,3", "--guidance", "3", "--seeds", "1", "--out", "b"]
    command += ["--json", "--csv", "--markdown", "--plot", "--report", "pages/page.html"]
    status, out, _ = run(*command)
    assert status == 0
    assert (tmp_path / "pages" / "page.html").read_text(encoding="utf-8").count("data:image/webp") == 6 + 1
    assert "diffusers UniPCMultistep" in out
    for name in ("results.jsonl", "results.json", "results.csv", "results.md", "pareto.png", "images.png"):
        assert (tmp_path / "b" / name).stat().st_size > 0
    before = (tmp_path / "b" / "results.jsonl").read_text()
    assert len(before.splitlines()) == 6
    assert run(*command)[0] == 0
    assert (tmp_path / "b" / "results.jsonl").read_text() == before


def test_solvers_are_whole_in_80_columns_and_in_a_pipe() -> None:
    """Whatever the width of the terminal is said to be; names are never cut."""
    for columns, arguments in (
        ("80", []),
        ("30", []),
        ("200", ["--details"]),
        ("80", ["--names"]),
        ("80", ["dpmpp"]),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "fastsample", "solvers", *arguments],
            env={**os.environ, "COLUMNS": columns},
            capture_output=True,
            text=True,
            check=True,
        )
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        if arguments in ([], ["--details"]):
            assert set(available()) <= {line.split()[0] for line in lines if line.strip()}


def test_solvers_by_a_part_of_their_names(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("solvers", "unipc")
    assert status == 0
    assert out.startswith("unipc\n")
    assert "disable_corrector" in out
    assert "dpmpp" not in out
    status, out, err = run("solvers", "unipcc")
    assert status == 2
    assert "did you mean unipc" in err


def test_the_solver_may_be_what_other_programs_call_it(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("sample", "--solver", "DPM++ 2M Karras", "--steps", "3", "--json")
    assert status == 0
    assert json.loads(out)["images"][0]["nfe"] == 6  # guided
    for name, words in (
        ("DPM++ 2N Karras", "did you mean 'DPM++ 2M Karras'"),
        ("euler_cfg_pp", "both branches"),
        ("dpmpp_2m oss-flux", "is laid out for flow-matching models"),
    ):
        status, _, err = run("sample", "--solver", name)
        assert status == 2
        assert words in " ".join(err.split())


def test_solvers_and_doctor_speak_json(run) -> None:  # type: ignore[no-untyped-def]
    status, out, _ = run("solvers", "--json")
    assert status == 0
    names = {solver["name"] for solver in json.loads(out)["solvers"]}
    assert {"ddim", "dpmpp-2m", "ghvb", "hb", "hb-dpmpp-2m", "nesterov", "plms", "dpm-3s"} <= names
    status, out, _ = run("doctor", "--json")
    assert status == 0
    assert json.loads(out)["step backend"] == "torch"
    assert run("solvers")[0] == 0
    assert run("doctor")[0] == 0


def test_help_is_complete_and_loads_no_torch() -> None:
    """Of every command, and of the list of solvers, in one process: nothing that takes seconds to load."""
    code = """
import sys
from fastsample.cli.main import app, run

commands = ["solvers", "sample", "bench", "report", "tune", "decode", "doctor"]
commands += ["tarflow sample", "tarflow plan", "tarflow bench"]
(group,) = app.registered_groups
assert len(commands) == len(app.registered_commands) + len(group.typer_instance.registered_commands)
for arguments in ["--help", "tarflow --help", "solvers", *(f"{command} --help" for command in commands)]:
    sys.argv = ["fastsample", *arguments.split()]
    try:
        run()
    except SystemExit as stop:
        assert not stop.code
    heavy = {"torch", "diffusers", "transformers", "matplotlib", "scipy", "PIL"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in ("--solver", "--peer", "--steps", "--guidance", "--resume", "--plot", "--rule", "--labels"):
        assert flag in done.stdout


def test_sample_and_bench_gate(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = ["--model", str(folder), "--steps", "4"]
    prompt = ["--prompt", "a red circle", "--json", "--out", str(tmp_path / "gated")]
    status, out, _ = run("sample", *model, *prompt, "--tgate", "2")
    assert status == 0
    assert json.loads(out)["images"][0]["nfe"] == 2 * 2 + 2
    (tmp_path / "prompts.txt").write_text("a red circle\na small circle\n")
    bench = ["--prompts", str(tmp_path / "prompts.txt"), "--solver", "ddim", "--peer", "none", "--seeds", "1"]
    status, _, _ = run(
        "bench", *model, *bench, "--guidance", "1,3", "--tgate", "2,4", "--out", str(tmp_path / "bench")
    )
    assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "bench" / "results.jsonl").read_text().splitlines()]
    # the gate at 4 of 4 steps makes no case, nor does cutting a guidance that is not there
    assert [(row["guidance"], row["gate"]) for row in rows] == [
        (1.0, None),
        (1.0, "gate 2"),
        (3.0, None),
        (3.0, "guidance cut 2"),
        (3.0, "gate 2"),
    ]
    assert [row["nfe"] for row in rows] == [4, 4, 8, 6, 6]
    assert rows[3]["saved_by_caching"] == 0 < rows[4]["saved_by_caching"]
    assert rows[4]["saved_by_guidance"] == pytest.approx(0.25)
    assert rows[4]["ungated_rms"] > 0


def test_sample_and_bench_in_parallel(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = ["--model", str(folder), "--solver", "ddim"]
    prompt = ["--prompt", "a red circle", "--prompt", "a circle", "--steps", "8", "--json"]
    status, out, _ = run("sample", *model, *prompt, "--out", "sequential")
    sequential = json.loads(out)["images"]
    settings = ["--parallel", "secant", "--window", "4", "--tolerance", "0"]
    status, out, _ = run("sample", *model, *prompt, *settings, "--out", "parallel")
    assert status == 0
    for one, other in zip(json.loads(out)["images"], sequential, strict=True):
        assert one["fallback"] == ""
        assert 0 < one["rounds"] <= 8
        assert one["nfe"] > other["nfe"] == 16
        difference = np.abs(np.subtract(Image.open(one["file"]), Image.open(other["file"]), dtype=float))
        assert difference.max() <= 1  # of 255
    (tmp_path / "prompts.txt").write_text("a red circle\na small circle\n")
    bench = ["--prompts", "prompts.txt", "--peer", "none", "--seeds", "1", "--steps", "1,8", "--guidance", "3"]
    bench += ["--parallel", "picard,secant", "--window", "4,all", "--tolerance", "0,0.5", "--plot", "--out", "bench"]
    status, out, _ = run("bench", *model, *bench)
    assert status == 0
    rows = [json.loads(line) for line in (tmp_path / "bench" / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 1 + (1 + 2 * 2 * 2)  # a single step has nothing to make at once
    for row in rows[2:]:
        assert row["fallback"] == ""
        assert row["sweeps"] + 1 == row["rounds"] <= 8
        if row["parallel"].endswith(" 0"):
            assert row["sequential_rms"] < 1e-4
    assert "rounds" in out
    for name in ("sweeps.png", "strip.png"):
        assert (tmp_path / "bench" / name).stat().st_size > 1000
