"""What a sampling run cost: model evaluations, seconds, memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.sampling.hooked import hooks_of


@dataclass
class Ledger:
    """Counts of one run.

    `forward_calls`: calls of the denoiser; `rows`: their batch rows summed. `model_evaluations` is rows over
    images, so that a guided (doubled) batch counts twice. `peak_memory` in bytes: on the GPU the most
    allocated during the run, on the CPU the process's peak resident size so far.
    """

    images: int = 1
    forward_calls: int = 0
    rows: int = 0
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
        started = time.perf_counter()
        try:
            yield self
        finally:
            if cuda:
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - started
            self.peak_memory = torch.cuda.max_memory_allocated() if cuda else _resident_peak()


def clock(device: torch.device) -> float:
    """A clock's seconds, once `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def count(pipe: Any, images: int) -> Iterator[Ledger]:
    """A ledger of what happens to `pipe`'s denoiser (unet or transformer) in the block, for `images` images.

    Raises ValueError when the pipeline has neither.
    """
    denoisers = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    modules = [module for module in denoisers if isinstance(module, nn.Module)]
    if not modules:
        raise ValueError(
            f"pipe = {type(pipe).__name__} has no unet or transformer whose evaluations could be counted"
        )
    ledger = Ledger(images)

    def counted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows = _rows_evaluated(module)
        if rows is None:
            sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
            rows = sample.shape[0] if isinstance(sample, Tensor) else images
        ledger.forward_calls += rows > 0
        ledger.rows += rows

    handles = [module.register_forward_hook(counted, with_kwargs=True) for module in modules]
    try:
        with ledger.running():
            yield ledger
    finally:
        for handle in handles:
            handle.remove()


def _rows_evaluated(module: nn.Module) -> int | None:
    """What a hook that drops part of the batch says of the last call; None where there is no such hook."""
    return next((hook.rows for hook in hooks_of(module).values() if hasattr(hook, "rows")), None)


def _resident_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
