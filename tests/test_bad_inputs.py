"""Every bad input ends in one line that names the argument and its value, and in status 2, before heavy work."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs import CASES, faults, filled, outcome, prepare

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


@pytest.mark.parametrize("line", ["sample --prompts {binary}", "bench --out {notes}", "solvers unipcc"])
def test_so_they_do_from_a_shell(tmp_path: Path, line: str) -> None:
    prepare(tmp_path)
    command = [sys.executable, "-m", "fastsample", *shlex.split(filled(line))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: ")
