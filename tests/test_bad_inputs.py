"""Every bad input ends in one line that names the argument and its value, and in status 2, before heavy work."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import CASES, faults, filled, outcome, prepare

ROOT = Path(__file__).parents[1]
COMMANDS = ("solvers", "sample", "bench", "tune", "decode", "tarflow sample", "tarflow plan", "tarflow bench")


def test_bad_inputs_end_in_their_line(tmp_path: Path) -> None:
    prepare(tmp_path)
    wrong = {}
    for line, pattern in CASES:
        bad = faults(outcome(shlex.split(filled(line)), tmp_path), filled(pattern))
        wrong |= {line: bad} if bad else {}
    assert not wrong, "\n".join(f"{line}: {'; '.join(bad)}" for line, bad in wrong.items())


def test_they_are_of_every_command() -> None:
    assert len({line for line, _ in CASES}) == len(CASES) >= 120
    for command in COMMANDS:
        assert sum(line.startswith(command) for line, _ in CASES) >= 4, command


SEVERAL = """
import shlex, sys
from fastsample.cli import main

for line in sys.argv[1:]:
    sys.argv = ["fastsample", *shlex.split(line)]
    try:
        main.run()
    except SystemExit as stopped:
        assert stopped.code == 2
"""


@pytest.mark.parametrize(
    ("program", "lines"),
    [
        (["-m", "fastsample", "solvers", "unipcc"], 1),
        (["-c", SEVERAL, "sample --prompts binary", "bench --out notes"], 2),  # one process: loading takes longer
    ],
    ids=["solvers", "sample, bench"],
)
def test_so_they_do_from_a_shell(tmp_path: Path, program: list[str], lines: int) -> None:
    """Nothing else is told, by what is loaded either."""
    prepare(tmp_path)
    paths = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "kernels"))
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *program], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2 if lines == 1 else 0, ""), done.stderr
    told = done.stderr.splitlines()
    assert len(told) == lines, done.stderr
    assert all(line.startswith("error: ") for line in told)
