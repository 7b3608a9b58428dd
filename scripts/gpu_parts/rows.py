"""Latency of a denoiser's call by its rows: what a window of steps costs beside a single one.

A row is one evaluation; guidance by two branches needs two a step. What that means for parallel sampling is computed
from the rounds and rows that sweeps of the bundled model took (benchmarks/parallel_cpu).
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch

from fastsample.bench.estimate import RowCost, expected_speedup
from gpu_parts import Part, Record, Setting
from gpu_parts.networks import SIZES, SMOKE, Size, make
from gpu_parts.timing import DEVICE, seconds, spread

ROWS = (1, 2, 4, 8, 16, 32)
LONG = 0.8
"""Seconds of a call beyond which more rows say nothing new."""
ROUNDS = Path(__file__).parents[2] / "benchmarks/parallel_cpu/results.jsonl"


def rows(setting: Setting) -> Iterator[Record]:
    """A record for each size and number of rows; then one a size for what parallel sampling would gain."""
    dtype = torch.float32 if setting.smoke else torch.bfloat16
    for size in SMOKE if setting.smoke else SIZES:
        cost: dict[int, float] = {}
        for record in _calls(size, ROWS[:2] if setting.smoke else ROWS, dtype, setting.repeats):
            cost[record["rows"]] = record["ms"] / 1e3
            yield record
        for steps, devices in ((25, 1), (50, 1), (50, 8)):
            yield {"model": size.name, "parallel": f"{steps} steps, {devices} GPUs", **gain(cost, steps, devices)}


def _calls(size: Size, counts: tuple[int, ...], dtype: torch.dtype, repeats: int) -> Iterator[Record]:
    module = make(size, dtype)
    first = 0.0
    for count in counts:
        arguments = size.arguments(count, dtype)
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            (once,) = seconds(lambda: module(**arguments, return_dict=False), 1)  # noqa: B023
            few = max(2, min(repeats, int(0.5 / once)))
            values = [1e3 * value for value in seconds(lambda: module(**arguments, return_dict=False), few)]  # noqa: B023
        except torch.OutOfMemoryError:
            return
        first = first or statistics.median(values)
        record: Record = {"model": size.name, "rows": count, "dtype": str(dtype).removeprefix("torch.")}
        record |= {**spread(values, "ms"), "to_one_row": round(statistics.median(values) / first, 2)}
        if DEVICE.type == "cuda":
            record["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
        yield record
        if once > LONG:
            return


def gain(cost: dict[int, float], steps: int, devices: int) -> Record:
    """Expected speed-up of DPM-Solver++ 2M by secant sweeps of all steps at tolerance 0.1, guidance 3."""
    wanted = {"solver": "dpmpp-2m", "guidance": 3.0, "steps": steps, "parallel": "secant all 0.1"}
    own = [r for r in map(json.loads, ROUNDS.read_text().splitlines()) if wanted.items() <= r.items()]
    rounds = statistics.mean(r["rounds"] for r in own)
    sweep = math.ceil(statistics.mean((r["nfe"] - 2) / r["sweeps"] for r in own))  # both branches
    pairs = RowCost({1: cost[2], **{count // 2: value for count, value in cost.items() if count >= 2}})
    speedup = expected_speedup(steps, rounds, math.ceil(sweep / 2), pairs, devices=devices, gather=0.05 * pairs(1))
    return {"rounds": round(rounds, 2), "steps_a_sweep": math.ceil(sweep / 2), "speedup": round(speedup, 2)}


PART = Part(
    "rows",
    "What do rows in a batch cost on denoisers of published size, and what would parallel sampling gain?",
    60,
    rows,
    ("model", "rows", "dtype", "ms", "to_one_row", "memory_gib", "parallel", "rounds", "steps_a_sweep", "speedup"),
)
