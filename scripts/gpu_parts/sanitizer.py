"""The kernels' checks once more under compute-sanitizer, which sees every access outside an allocation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from gpu_parts import Part, Record, Setting

TOOLS = ("memcheck", "racecheck")


def sanitizer(setting: Setting) -> Iterator[Record]:
    """Tiny cases in a process of their own, each tensor in an allocation of its own."""
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in TOOLS[: 1 if setting.smoke else None]:
        with tempfile.TemporaryDirectory() as folder:
            checks = [sys.executable, "-m", "gpu_parts", "--smoke", "--parts", "kernels", "--out", folder]
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *checks]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        summary = re.findall(r"={9} (?:ERROR|RACECHECK) SUMMARY: (.*)", done.stdout + done.stderr)
        assert done.returncode == 0, (
            f"{tool}: exit {done.returncode}, {summary}: {(done.stdout + done.stderr)[-2000:]}"
        )
        yield {"tool": tool, "summary": summary[-1] if summary else "nothing said"}


PART = Part(
    "sanitizer",
    "Does any kernel reach outside its tensors, or race?",
    90,
    sanitizer,
    ("tool", "summary"),
    ("gpu", "compute-sanitizer"),
)
