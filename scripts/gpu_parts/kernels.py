"""The kernels: first right, then timed against the bandwidth floor and the same in torch as one would write it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from fastsample_kernels import use_backend

from gpu_parts import Part, Record, Setting
from gpu_parts.cases import cases, check_graph, check_long, check_streams
from gpu_parts.timing import DEVICE, copy_bandwidth, launches_and_syncs, spread, times

ON_A_DEVICE = {
    "20 replays of a captured step": check_graph,
    "two streams, two threads": check_streams,
    "2^31 elements": check_long,
}


def check(setting: Setting) -> Iterator[Record]:
    """Every case against float64, its launches and its waits; then what only a device can show."""
    with use_backend("triton"):
        for case in cases(smoke=setting.smoke):
            case.check()
            launches, syncs = launches_and_syncs(case.kernel)
            record = {"operation": case.operation, "case": case.name, "right": True}
            yield {**record, "launches": launches, "syncs": syncs}
        if DEVICE.type == "cuda" and not setting.smoke:
            for name, run in ON_A_DEVICE.items():
                run()
                yield {"operation": "linear_step", "case": name, "right": True}


def speed(setting: Setting) -> Iterator[Record]:
    """Device time of each case; the floor is the bytes that must move over the bandwidth of a large copy."""
    bandwidth = copy_bandwidth()
    yield {"operation": "copy", "case": "1 GiB", "gb_s": round(bandwidth / 1e3, 1)}
    with use_backend("triton"):
        for case in cases(smoke=setting.smoke):
            ours, theirs = times(case.kernel, setting.repeats), times(case.eager, setting.repeats)
            floor = case.bytes / bandwidth
            record = {
                "operation": case.operation,
                "case": case.name,
                **spread(ours, "us"),
                **spread(theirs, "torch_us"),
            }
            record |= {"floor_us": round(floor, 2), "to_floor": round(statistics.median(ours) / floor, 2)}
            yield record | {"torch_to_ours": round(statistics.median(theirs) / statistics.median(ours), 2)}


CHECK = Part(
    "kernels",
    "Are the compiled kernels right, each one launch without a wait?",
    90,
    check,
    ("operation", "case", "right", "launches", "syncs"),
)
SPEED = Part(
    "speed",
    "How near to the memory's bandwidth are they, and to torch?",
    60,
    speed,
    ("operation", "case", "us", "floor_us", "to_floor", "torch_us", "torch_to_ours", "gb_s"),
)
