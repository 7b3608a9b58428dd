"""Timing on a GPU, for the gpu_*.py scripts: device time, host time, launches and waits of a call, and records.

On a CPU, where the kernels run in Triton's interpreter, all of it runs and the times say nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is decorated

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Run = Callable[[], Any]
Record = dict[str, Any]


def times(run: Run, repeats: int) -> list[float]:
    """Microseconds of the device a call, or of the host on a CPU."""
    for _ in range(3 if DEVICE.type == "cuda" else 1):
        run()
    if DEVICE.type == "cpu":
        return [_host(run) for _ in range(repeats)]
    flush = torch.empty(256 << 20, dtype=torch.int8, device=DEVICE)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in pairs:
        flush.zero_()  # also keeps the device busy while the host enqueues
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * begin.elapsed_time(end) for begin, end in pairs]


def _host(run: Run) -> float:
    begin = time.perf_counter()
    run()
    return 1e6 * (time.perf_counter() - begin)


def host_time(run: Run) -> float:
    """Median microseconds until a call returns."""
    values = []
    for _ in range(50 if DEVICE.type == "cuda" else 1):
        values.append(_host(run))
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
    return statistics.median(values)


def launches_and_syncs(run: Run) -> tuple[int | None, int | None]:
    """Kernels a call launches and how often it waits for the device; unknown on a CPU."""
    if DEVICE.type == "cpu":
        run()
        return None, None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    kernels = [event for event in found.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    return len(kernels), sum("synchroniz" in str(warning.message) for warning in caught)


def copy_bandwidth() -> float:
    """Bytes a microsecond of a large copy, read and written."""
    size = 1 << (30 if DEVICE.type == "cuda" else 20)
    source, target = (torch.empty(size, dtype=torch.int8, device=DEVICE) for _ in range(2))
    return 2 * size / statistics.median(times(lambda: target.copy_(source), 20))


def environment(seed: int) -> dict[str, Any]:
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU, Triton's interpreter"
    versions = {
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
        "cuda": torch.version.cuda,
    }
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"device": name, **versions, "commit": git.stdout.strip() or None, "seed": seed, "time": now}


def append(path: Path, records: list[dict[str, Any]]) -> None:
    """The file is one JSON list; it is replaced whole, so that a broken run leaves the old one."""
    before = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    lines = ",\n".join(json.dumps(record) for record in before + records)
    temporary.write_text(f"[\n{lines}\n]\n")
    temporary.replace(path)
