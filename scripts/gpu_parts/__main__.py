"""`scripts/gpu`: the parts in turn, each written to disk as it ends, and a table of all of them.

A part that fails is recorded with its error, and the others go on; after an error of the device, which no process
survives, in a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpu_parts import Part, Record, Setting
from gpu_parts.report import markdown
from gpu_parts.timing import DEVICE, environment

LEAST = 5.0
"""Seconds below which a part is not begun."""


def parts() -> list[Part]:
    """The most valuable first."""
    from gpu_parts import blocks, compiled, flows, gates, graphs, kernels, models, peers, rows, sanitizer, steps

    measured = [kernels.CHECK, steps.HOST, steps.CROSSOVER, compiled.PART, kernels.SPEED]
    used = [part.PART for part in (graphs, blocks, peers, rows, gates, models, sanitizer, flows)]
    return [*measured, *used]


def obstacle(part: Part) -> str | None:
    """Why `part` cannot run here."""
    for need in part.needs:
        if need == "gpu":
            if DEVICE.type == "cpu":
                return "no GPU here"
        elif shutil.which(need) is None:
            return f"{need} is not on the PATH"
    return None


def run(part: Part, setting: Setting, seconds: float) -> dict[str, Any]:
    """The part's records, as many as `seconds` allow, and what stopped it, if anything did."""
    begin, records, stopped = time.monotonic(), list[Record](), None
    torch.manual_seed(setting.seed)
    try:
        with torch.no_grad():
            for record in part.run(setting):
                records.append(record)
                print(
                    "  " + "  ".join(f"{name} {record[name]}" for name in part.columns if name in record), flush=True
                )
                if time.monotonic() - begin > seconds:
                    stopped = f"its {seconds:.0f} s were over"
                    break
    except Exception as error:  # what has been measured is kept
        traceback.print_exc()
        stopped = f"{type(error).__name__}: {error}".splitlines()[0]
    return {"part": part.name, "seconds": round(time.monotonic() - begin, 1), "stopped": stopped, "records": records}


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def as_json(found: dict[str, Any]) -> str:
    """A record a line, so that two runs can be compared by eye."""
    head = json.dumps({name: value for name, value in found.items() if name != "records"}, indent=1)
    lines = ",\n".join(f"  {json.dumps(record)}" for record in found["records"])
    return head.removesuffix("\n}") + f',\n "records": [\n{lines}\n ]\n}}\n'


def device_is_lost() -> bool:
    """Whether the GPU has failed this process for good."""
    try:
        torch.zeros(1, device=DEVICE).add_(1).cpu()
    except RuntimeError:
        return True
    return False


def choose(names: str, known: Sequence[Part]) -> list[Part]:
    """The parts called by `names`. Raises ValueError for one that is not."""
    wanted = names.split(",")
    unknown = sorted(set(wanted) - {part.name for part in known})
    if unknown:
        raise ValueError(f"--parts {','.join(unknown)}: choose among {','.join(part.name for part in known)}")
    return [part for part in known if part.name in wanted]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu", description="What fastsample does on this machine's GPU.")
    parser.add_argument("--parts", help="names with commas between; all by default")
    parser.add_argument("--list", action="store_true", help="show the parts and stop")
    parser.add_argument("--seconds", type=float, default=480, help="no part begins, and none goes on, after them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/gpu"), help="folder of the records")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, also without a GPU")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    begin, known = time.monotonic(), parts()
    try:
        chosen = choose(arguments.parts, known) if arguments.parts else known
    except ValueError as error:
        parser.error(str(error))
    if DEVICE.type == "cpu" and not arguments.smoke and not arguments.list:
        parser.error("no GPU here: --smoke runs tiny sizes in Triton's interpreter")
    obstacles = {part.name: obstacle(part) for part in chosen}
    for part in chosen:
        skipped = f" SKIPPED: {obstacles[part.name]}" if obstacles[part.name] else ""
        print(f"{part.name:12} {part.seconds:4.0f} s  {part.question}{skipped}")
    if arguments.list:
        return
    about = environment()
    print(json.dumps(about), flush=True)
    setting = Setting(arguments.smoke, 1 if arguments.smoke else 30, arguments.seed)
    for place, part in enumerate(chosen):
        left = arguments.seconds - (time.monotonic() - begin)
        if obstacles[part.name]:
            found = {"part": part.name, "seconds": 0.0, "stopped": f"skipped: {obstacles[part.name]}", "records": []}
        elif left < LEAST:
            found = {"part": part.name, "seconds": 0.0, "stopped": "skipped: no time was left", "records": []}
        else:
            print(f"== {part.name}: {part.question}", flush=True)
            found = run(part, setting, min(part.seconds, left))
        write(arguments.out / f"{part.name}.json", as_json({"about": about, **found}))
        write(arguments.out / "README.md", markdown(arguments.out, known))
        print(
            f"-- {part.name}: {found['seconds']} s{', ' + found['stopped'] if found['stopped'] else ''}", flush=True
        )
        rest = [other.name for other in chosen[place + 1 :]]
        if rest and DEVICE.type == "cuda" and device_is_lost():
            left = arguments.seconds - (time.monotonic() - begin)
            options = ["--parts", ",".join(rest), "--seconds", str(left), "--out", str(arguments.out)]
            options += ["--seed", str(arguments.seed), *(["--smoke"] if arguments.smoke else [])]
            os.execv(sys.executable, [sys.executable, "-m", "gpu_parts", *options])
    print((arguments.out / "README.md").read_text())
    failed = [
        name for name in obstacles if (arguments.out / f"{name}.json").exists() and _failed(arguments.out, name)
    ]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _failed(out: Path, name: str) -> bool:
    stopped = json.loads((out / f"{name}.json").read_text())["stopped"]
    return bool(stopped) and not stopped.startswith(("skipped", "its "))


if __name__ == "__main__":
    main()
