"""What a pipeline's call costs: the evaluations of its denoisers, made and dropped, into a ledger."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from fastsample.pipelines.denoisers import denoisers, latents_of
from fastsample.sampling.ledger import Ledger

_OPEN: ContextVar[tuple[Ledger, ...]] = ContextVar("ledgers", default=())
"""Those that count in this thread."""


def count_dropped(rows: int) -> None:
    """Tell this thread's ledgers of rows that a denoiser was not given, as guidance is off at their step."""
    for ledger in _OPEN.get():
        ledger.dropped += rows


@contextlib.contextmanager
def count(pipe: Any, images: int) -> Iterator[Ledger]:
    """A ledger of what this thread evaluates of `pipe`'s denoisers in the block, for `images` images.

    ControlNets are not counted. Raises ValueError when the pipeline has no denoiser.
    """
    modules = [denoiser.component for denoiser in denoisers(pipe) if not denoiser.is_controlnet]
    if not modules:
        raise ValueError(
            f"pipe = {type(pipe).__name__} has no unet or transformer whose evaluations could be counted"
        )
    ledger, thread = Ledger(images), threading.current_thread()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def counted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.current_thread() is not thread:
            return
        ledger.forward_calls += 1
        ledger.rows += len(latents_of(args, kwargs))

    with contextlib.ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_hook(counted, with_kwargs=True).remove)
        undo.callback(_OPEN.reset, _OPEN.set((*_OPEN.get(), ledger)))
        with ledger.running():
            yield ledger
