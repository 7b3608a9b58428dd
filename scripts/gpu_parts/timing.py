"""Timing on a GPU: device time, host time, launches and waits of a call, and what is said about the machine.

On a CPU, where the kernels run in Triton's interpreter, all of it runs and the times say nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where a kernel is decorated

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
Run = Callable[[], Any]


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def times(run: Run, repeats: int) -> list[float]:
    """Microseconds of the device a call, its cache overwritten before each; of the host on a CPU."""
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


def host_times(run: Run, repeats: int, calls: int) -> list[float]:
    """Microseconds of the host a call, each the mean of `calls` in a row with nothing waited for."""
    run()
    found = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            run()
        found.append(1e6 * (time.perf_counter() - begin) / calls)
    synchronize()
    return found


def seconds(run: Run, repeats: int) -> list[float]:
    """Seconds of a long call, until the device is done."""
    run()
    found = []
    for _ in range(repeats):
        synchronize()
        begin = time.perf_counter()
        run()
        synchronize()
        found.append(time.perf_counter() - begin)
    return found


def spread(values: Sequence[float], unit: str, digits: int = 2) -> dict[str, float]:
    """Median and quartiles, named by `unit`."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {
        unit: round(middle, digits),
        f"{unit}_q1": round(low, digits),
        f"{unit}_q3": round(high, digits),
    }


def launches_and_syncs(run: Run) -> tuple[int | None, int | None]:
    """Kernels a call launches and how often it waits for the device; unknown on a CPU."""
    run()
    if DEVICE.type == "cpu":
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
    return len(kernels), sum("called a synchronizing" in str(warning.message) for warning in caught)


def copy_bandwidth() -> float:
    """Bytes a microsecond of a large copy, read and written."""
    size = 1 << (30 if DEVICE.type == "cuda" else 20)
    source, target = (torch.empty(size, dtype=torch.int8, device=DEVICE) for _ in range(2))
    return 2 * size / statistics.median(times(lambda: target.copy_(source), 20))


def environment() -> dict[str, Any]:
    """Device, versions and commit."""
    here = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    on_gpu = DEVICE.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU, Triton's interpreter",
        "memory_gib": round(torch.cuda.get_device_properties(DEVICE).total_memory / 2**30, 1) if on_gpu else None,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **{name: importlib.metadata.version(name) for name in ("triton", "diffusers", "transformers")},
        "commit": os.environ.get("FASTSAMPLE_COMMIT") or git.stdout.strip() or None,  # a copy may have no .git
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
