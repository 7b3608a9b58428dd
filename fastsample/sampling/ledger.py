"""What a sampling run cost: model evaluations, seconds, memory."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch


@dataclass
class Ledger:
    """Counts of one run.

    `forward_calls`: calls of the denoiser; `rows`: their batch rows summed; `dropped`: rows not made, as guidance was
    off there. `model_evaluations` is rows over images, so that a guided (doubled) batch counts twice. `peak_memory`
    in bytes: on the GPU the most allocated during the run, on the CPU the process's peak resident size so far (0 on
    Windows, which does not say).
    """

    images: int = 1
    forward_calls: int = 0
    rows: int = 0
    dropped: int = 0
    seconds: float = 0.0
    peak_memory: int = 0

    @property
    def model_evaluations(self) -> float:
        """Model evaluations an image; a guided step counts 2."""
        return self.rows / self.images

    @contextlib.contextmanager
    def running(self) -> Iterator[Ledger]:
        """Take the time and memory of the block."""
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        started = _now()
        try:
            yield self
        finally:
            self.seconds += _now() - started
            self._note_memory()

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Take the block, within :meth:`running`, out of its time, and on the GPU out of its memory."""
        started = _now()
        self._note_memory()
        try:
            yield
        finally:
            self.seconds -= _now() - started
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

    def _note_memory(self) -> None:
        now = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident_peak()
        self.peak_memory = max(self.peak_memory, now)


def clock(device: torch.device) -> float:
    """A clock's seconds, once `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _now() -> float:
    """Seconds, once the GPU has done what it was given, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _resident_peak() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
