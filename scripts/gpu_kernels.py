"""The Triton kernels on a GPU: first right, then timed against the bandwidth floor, eager torch and torch.compile.

    PYTHONPATH=kernels python scripts/gpu_kernels.py --out benchmarks/gpu_kernels.json
    PYTHONPATH=kernels compute-sanitizer python scripts/gpu_kernels.py --check
    PYTHONPATH=kernels python scripts/gpu_kernels.py --tune blocks.json

Times are of the device, by CUDA events, with the L2 cache overwritten before each call; where the device waits for
the host between operations, as in eager torch, that is in them. The floor is the bytes that must move over the
bandwidth of a large copy, measured the same way. Host time is of the call alone, without waiting. Records are
appended, one a case and implementation. `--smoke` runs all of it in Triton's interpreter on tiny sizes. Needs torch
and triton only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from fastsample_kernels import blocks, use_backend
from fastsample_kernels._device import architecture
from gpu_kernel_cases import Case, cases, check_graph
from gpu_timing import DEVICE, Record, append, copy_bandwidth, environment, host_time, launches_and_syncs, times


def measure(case: Case, bandwidth: float, repeats: int, compiler: str) -> Iterator[Record]:
    """A record of each implementation."""
    floor = case.bytes / bandwidth
    compiled = torch.compile(case.eager, fullgraph=True, backend=compiler, dynamic=False)
    for implementation, run in (("triton", case.kernel), ("eager", case.eager), ("compile", compiled)):
        torch._dynamo.reset()
        values = sorted(times(run, repeats))
        launches, syncs = launches_and_syncs(run)
        p10, median, p90 = (values[round(q * (len(values) - 1))] for q in (0.1, 0.5, 0.9))
        yield {
            "operation": case.operation,
            "case": case.name,
            "implementation": implementation,
            "median_us": round(median, 3),
            "p10_us": round(p10, 3),
            "p90_us": round(p90, 3),
            "repeats": repeats,
            "floor_us": round(floor, 3),
            "ratio": round(median / floor, 3),
            "host_us": round(host_time(run), 3),
            "launches": launches,
            "syncs": syncs,
            "bytes": case.bytes,
        }


CANDIDATES: dict[str, dict[str, list[int]]] = {
    "linear_step": {"block": [512, 1024, 2048], "warps": [4, 8]},
    "triangular_mix": {"rows": [8, 16], "columns": [128, 256, 512], "warps": [2, 4]},
    "token_statistics": {"block": [512, 1024, 2048, 4096], "warps": [4, 8], "chunk": [4096, 8192, 16384]},
}


def tune(path: Path, chosen: list[Case], repeats: int, *, smoke: bool) -> None:
    """Write the sizes whose slowest ratio to the best, over an operation's cases, is least."""
    chosen_sizes: dict[str, blocks.Config] = {}
    for operation, grid in CANDIDATES.items():
        sizes = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())][: 2 if smoke else None]
        runs = [case.kernel for case in chosen if case.operation == operation]
        found = []
        for size in sizes:
            with block_sizes(operation, size):
                found.append([statistics.median(times(run, repeats)) for run in runs])
        least = [min(column) for column in zip(*found, strict=True)]
        scores = [max(time / best for time, best in zip(row, least, strict=True)) for row in found]
        chosen_sizes[operation] = sizes[scores.index(min(scores))]
        print(f"{operation}: {chosen_sizes[operation]}, at most {min(scores):.2f} times the best of each case")
    path.write_text(json.dumps({architecture(DEVICE): chosen_sizes}, indent=2) + "\n")


@contextmanager
def block_sizes(operation: str, sizes: blocks.Config) -> Iterator[None]:
    """Block sizes for the calls inside, through the file a user would name."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({architecture(DEVICE): {operation: sizes}}, file)
        file.flush()
        os.environ[blocks.VARIABLE] = file.name
        blocks.forget()
        try:
            yield
        finally:
            del os.environ[blocks.VARIABLE]
            blocks.forget()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="append the records to this JSON file")
    parser.add_argument("--check", action="store_true", help="correctness only")
    parser.add_argument("--tune", type=Path, metavar="FILE", help="write the best block sizes to FILE, then stop")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also in the interpreter")
    parser.add_argument("--repeats", type=int, help="timed calls a case (100; 2 with --smoke)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if DEVICE.type == "cpu" and not arguments.smoke:
        parser.error("no GPU here: --smoke runs tiny sizes in Triton's interpreter")
    torch.manual_seed(arguments.seed)
    repeats = arguments.repeats or (2 if arguments.smoke else 100)
    records = []
    with torch.inference_mode(), use_backend("triton"):
        chosen = list(cases(smoke=arguments.smoke))
        for case in chosen:
            case.check()
        if DEVICE.type == "cuda":
            check_graph()
        print(f"{len(chosen)} cases are right")
        if arguments.tune:
            tune(arguments.tune, chosen, repeats, smoke=arguments.smoke)
        elif not arguments.check:
            bandwidth = copy_bandwidth()
            print(
                f"copy: {bandwidth / 1e3:.1f} GB/s\n{'us: median':>58} {'p10':>9} {'p90':>9} {'floor':>9} ratio  host"
            )
            about = {**environment(arguments.seed), "copy_gb_s": round(bandwidth / 1e3, 1)}
            for case in chosen:
                for record in measure(case, bandwidth, repeats, "eager" if arguments.smoke else "inductor"):
                    records.append({**about, **record})
                    print(
                        "{operation:17}{case:29}{implementation:8}{median_us:9.2f} {p10_us:9.2f} {p90_us:9.2f} "
                        "{floor_us:9.2f} {ratio:5.2f} {host_us:5.1f} launches {launches} syncs {syncs}".format(
                            **record
                        )
                    )
    if arguments.out:
        append(arguments.out, records)


if __name__ == "__main__":
    main()
