"""The bound launch: its values, interpreted; what it launches where, on a GPU that is not there."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fastsample_kernels import WeightedStep, linear_step
from kernel_inputs import DEVICE, DTYPES, random
from torch import Tensor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("outputs", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_it_is_linear_step(count: int, outputs: int) -> None:
    """To the bit of the other kernel, with weights in a table: also for a shape seen before, and for odd sizes."""
    step, weights = WeightedStep(), torch.randn(outputs, count)
    dtypes = [DTYPES[j % 3] for j in range(outputs)]
    for shape in ((2, 3, 16), (1, 2000), (7,), (2, 3, 16), ()):
        inputs = [random(*shape, dtype=DTYPES[k % 3], seed=k) for k in range(count)]
        found = step(inputs, tuple(weights.flatten().tolist()), dtypes)
        table, index = weights[None].to(DEVICE), torch.tensor(0, device=DEVICE)
        assert found is not None
        for own, other in zip(found, linear_step(inputs, table, index, dtypes=dtypes), strict=True):
            assert own.dtype == other.dtype
            torch.testing.assert_close(own, other, rtol=2**-7 if own.dtype == torch.bfloat16 else 1e-3, atol=1e-5)


def test_weight_zero_does_not_read() -> None:
    bad, ones = torch.tensor([math.nan, math.inf, 1.0, 2.0], device=DEVICE), torch.ones(4, device=DEVICE)
    clean, reached = WeightedStep()([ones, bad], (2.0, 0.0, 1.0, 1.0), [torch.float32] * 2) or ()
    assert clean.tolist() == [2.0] * 4
    assert reached[0].isnan()
    assert reached[1:].tolist() == [math.inf, 2.0, 3.0]


def test_what_is_out_of_the_ordinary_is_left_to_linear_step() -> None:
    x = random(4, 6, 2, 2)
    unlike = {
        "shape": [x, x[:2]],
        "float64": [x, x.double()],
        "device": [x, x.to("meta")],
        "channels last": [x.contiguous(memory_format=torch.channels_last)] * 2,
        "transposed": [x.transpose(0, 1).contiguous().transpose(0, 1), x],
        "gradient": [x, x.clone().requires_grad_()],
        "parameter": [x, torch.nn.Parameter(x, requires_grad=False)],
        "empty": [x[:0], x[:0]],
    }
    for name, inputs in unlike.items():
        assert WeightedStep()(inputs, (1.0, 2.0), [torch.float32]) is None, name
    (found,) = WeightedStep()([x, unlike["transposed"][0]], (1.0, 2.0), [torch.float32]) or ()
    torch.testing.assert_close(found, 3 * x)
    with torch.no_grad():
        assert WeightedStep()(unlike["gradient"], (1.0, 2.0), [torch.float32]) is not None

    def step(y: Tensor) -> Tensor:
        found = WeightedStep()([y, y], (1.0, 2.0), [torch.float32])
        return y if found is None else found[0]

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What bound_launches.py tells."""
    path = os.pathsep.join(str(ROOT / folder) for folder in ("kernels", "scripts", "tests", "."))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests/bound_launches.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_launch_is_bound_once_and_then_given_pointers(found: Any) -> None:
    once = found["once"]
    assert all(one["right"] and one["weights"] == [1.0, 2.0, 3.0, 4.0] for one in once.values()), once
    ordinary = [name for name, one in once.items() if one["ordinary"]]
    assert ordinary == ["first", "off 16 bytes", "another shape", "another dtype"]
    assert [name for name, one in once.items() if one["stream"] == 77] == ["another stream"]
    assert once["another shape"]["size"] == 2 * once["first"]["size"]


def test_a_launch_goes_to_its_tensors_device(found: Any) -> None:
    """Another device is made current for the launch alone, which goes to that one's stream; -1 is the current one."""
    for device, current, stream, after in found["devices"]:
        assert stream == 10 + (current if device == -1 else device)
        assert after == current


def test_threads_launch_on_their_own_streams(found: Any) -> None:
    assert found["threads"] == {"wrong": [], "launches": 600, "bound": 1}


def test_without_kernels_to_bind_every_launch_is_tritons_own(found: Any) -> None:
    assert found["unbound"] == [1, 1, 1]


def test_a_bound_launch_costs_a_fraction(found: Any) -> None:
    """Of host time; a third is what it takes when the machine is idle."""
    assert found["cost"]["bound"] < 0.6 * found["cost"]["ordinary"], found
