"""Run by test_weighted_step in a process of its own: launches on a GPU that is not there, told as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import mocked_driver
import torch

driver = mocked_driver.install()

from fastsample_kernels import WeightedStep, _bound, linear_step  # noqa: E402  after the driver
from triton.runtime import jit  # noqa: E402, TID251

WEIGHTS = (1.0, 2.0, 3.0, 4.0)
WIDE = (torch.float32,) * 2
x = torch.zeros(1, 4, 64, 64)
launches = mocked_driver.LAUNCHES
ordinary: list[str] = []
_run = jit.JITFunction.run


def _counted(self: Any, *args: Any, **options: Any) -> Any:
    ordinary.append(self.fn.__name__)
    return _run(self, *args, **options)


jit.JITFunction.run = _counted


def pointers(launch: Any) -> list[int]:
    return [value if isinstance(value, int) else value.data_ptr() for part in launch[3][:2] for value in part]


def launched(step: WeightedStep, inputs: Sequence[torch.Tensor], dtypes: Sequence[torch.dtype] = WIDE) -> Any:
    """What one call launches, and whether Triton's own launch did it."""
    launches.clear()
    ordinary.clear()
    made = step(inputs, WEIGHTS, dtypes) or []
    (launch,) = launches
    right = pointers(launch) == [tensor.data_ptr() for tensor in (*made, *inputs)]
    about = {"ordinary": len(ordinary), "stream": launch[2], "right": right}
    return about | {"weights": launch[3][2], "size": launch[3][3]}


def once() -> Any:
    step, half = WeightedStep(), torch.bfloat16
    found = {"first": launched(step, [x, x]), "again": launched(step, [x, x.clone()])}
    driver.stream = 77
    found["another stream"] = launched(step, [x, x])
    driver.stream = 0
    apart = torch.zeros(x.numel() + 1)[1:].view_as(x)
    found["off 16 bytes"] = launched(step, [x, apart])
    found["back on them"] = launched(step, [x, x])
    found["another shape"] = launched(step, [torch.cat([x, x])] * 2)
    found["another dtype"] = launched(step, [x, x.to(half)], (half, torch.float32))
    found["the first shape"] = launched(step, [x, x])
    return found


def cost() -> Any:
    """The least host time of either way, in turn."""
    step, table, index = WeightedStep(), torch.ones(1, 2, 2), torch.tensor([0])
    ways: dict[str, Callable[[], Any]] = {
        "bound": lambda: step([x, x], WEIGHTS, WIDE),
        "ordinary": lambda: linear_step([x, x], table, index),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(300):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - begin)
    return {name: min(values) for name, values in times.items()}


def threads() -> Any:
    """Three, each with a stream of its own: the streams that saw other tensors than their thread's."""
    step, own, wrong = WeightedStep(), threading.local(), []
    driver.get_current_stream = lambda device=0: own.stream
    launches.clear()

    def work(stream: int) -> None:
        own.stream = stream
        for _ in range(200):
            given = [torch.zeros_like(x) for _ in range(2)]
            made = step(given, WEIGHTS, WIDE) or []
            mine = [launch for launch in list(launches) if launch[2] == stream]
            if pointers(mine[-1]) != [tensor.data_ptr() for tensor in (*made, *given)]:
                wrong.append(stream)

    workers = [threading.Thread(target=work, args=(stream,)) for stream in (5, 6, 7)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"wrong": wrong, "launches": len(launches), "bound": len(step._bound)}


class Guard:
    """torch.cuda.device where there is none."""

    def __init__(self, device: int) -> None:
        self.device = device

    def __enter__(self) -> None:
        self.before, driver.device = driver.device, self.device

    def __exit__(self, *error: Any) -> None:
        driver.device = self.before


def devices() -> Any:
    """For a kernel's device, and the one that is current: the stream it goes to, and what is current after."""
    step = WeightedStep()
    driver.get_current_stream = lambda device=0: 10 + device
    launched(step, [x, x])
    (bound,) = step._bound.values()
    seen = []
    with mock.patch.object(torch.cuda, "device", Guard):
        for device, current in ((0, 0), (1, 0), (0, 1), (1, 1), (-1, 1)):
            launches.clear()
            driver.device = current
            bound(device, (16, 32), (48, 64), WEIGHTS)
            seen.append([device, current, launches[0][2], driver.device])
    return seen


def unbound() -> Any:
    """Where what Triton returns is no kernel that is known."""
    _bound.CompiledKernel = type("Another", (), {})
    step = WeightedStep()
    return [launched(step, [x, x])["ordinary"] for _ in range(3)]


if __name__ == "__main__":
    results = {"cost": cost()}
    driver.record = True
    print(json.dumps(results | {scenario.__name__: scenario() for scenario in (once, threads, devices, unbound)}))
