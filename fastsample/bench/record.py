"""Results on disk as they come: JSON lines, appended and flushed, readable after a broken run."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

Result = dict[str, Any]


class Record:
    """A JSON-lines file of results, one line a case, keyed by `key`.

    A torn last line, of a run that was killed, is dropped on opening.
    """

    def __init__(self, path: Path, *, resume: bool = True) -> None:
        self.path = path
        self.results: dict[str, Result] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and resume:
            for line in path.read_text().splitlines():
                try:
                    result = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.results[result["key"]] = result
        path.write_text("".join(json.dumps(result) + "\n" for result in self.results.values()))

    def append(self, result: Mapping[str, Any]) -> Result:
        """Add one result and put it on disk; the result as it reads from there."""
        plain = {key: _json_number(value) for key, value in result.items()}
        self.results[str(plain["key"])] = plain
        with self.path.open("a") as file:
            file.write(json.dumps(plain) + "\n")
        return plain


def _json_number(value: Any) -> Any:
    """JSON has no inf and nan: they become None (a diverged or absent figure)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def context_of(*known: Any) -> str:
    """A hash of what a record's results depend on, for their keys."""
    return hashlib.sha256(repr(known).encode()).hexdigest()[:12]


def weights_digest(model: nn.Module) -> str:
    """A hash of the weights, so that a record of others is not taken for these."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        total.update(parameter.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()


def environment() -> dict[str, Any]:
    """Versions and hardware, for every record."""
    import diffusers
    import torch

    from fastsample.version import __version__

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {processor()}"
    return {
        "fastsample": __version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
