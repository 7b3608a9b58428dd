"""What the compiler makes of the kernels for compute capability 9.0 is what blocks.py says: registers and loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastsample_kernels.blocks import REGISTERS

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
CODE = """
import json, benchmark_launch, mocked_driver
print(json.dumps([(call, name, mocked_driver.resources(kernel))
                  for call, name, kernel in benchmark_launch.compiled_kernels()]))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, dict[str, Any]]]:
    """By call, the kernel's name and what it needs."""
    if not Path(triton.knobs.nvidia.cuobjdump.path).exists():
        pytest.skip("Triton has come without cuobjdump")
    path = os.pathsep.join(str(ROOT / folder) for folder in ("kernels", "scripts", "."))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {call: (name, needs) for call, name, needs in json.loads(done.stdout)}


def test_registers_are_those_stated_and_nothing_spills(compiled: dict[str, tuple[str, dict[str, Any]]]) -> None:
    operations = {"step": "linear_step", "token": "token_statistics", "32 rows": "triangular_mix"}
    most: dict[str, int] = {}
    for call, (_, needs) in compiled.items():
        (operation,) = [name for start, name in operations.items() if call.startswith(start)]
        operation += ", Gumbel" if "Gumbel" in call else ""
        most[operation] = max(most.get(operation, 0), needs["registers"])
        assert needs["stack"] == 0
    assert set(most) == set(REGISTERS)
    for operation, registers in most.items():
        assert 0.75 * REGISTERS[operation] <= registers <= REGISTERS[operation], operation


def test_loads_are_as_wide_as_stated(compiled: dict[str, tuple[str, dict[str, Any]]]) -> None:
    loads = {call: needs["loads"] for call, (_, needs) in compiled.items()}
    assert loads["step of 3 float32"] == "3 x 16"
    assert loads["step of 3, sample in bfloat16"] == "1 x 16, 2 x 8"
    assert loads["step of 10, sample in bfloat16"] == "8 x 16, 2 x 8"
    assert loads["step by a table on the device"].startswith("3 x 16")
    assert loads["token statistics of bfloat16"].startswith("3 x 16")  # the first, the one ahead, and NaN's place
    assert loads["32 rows of float32"].startswith("5 x 16")  # x_T, and M four rows at a time
    shared = {call: needs["shared"] for call, (_, needs) in compiled.items() if call.startswith("step")}
    assert set(shared.values()) == {0}  # mixed dtypes need no exchange between threads
