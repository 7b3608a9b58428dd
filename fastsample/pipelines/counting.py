"""What a pipeline's call costs: the evaluations of its denoisers, made and dropped, into a ledger."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from fastsample.pipelines.denoisers import denoisers, latents_of
from fastsample.pipelines.layers import EVALUATED, Layer, layered
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

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def counted(beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = beneath(*args, **kwargs)
        if threading.current_thread() is thread:
            ledger.forward_calls += 1
            ledger.rows += len(latents_of(args, kwargs))
        return output

    with contextlib.ExitStack() as undo:
        for module in modules:
            undo.enter_context(layered(module, Layer("ledger", counted, depth=EVALUATED)))
        undo.callback(_OPEN.reset, _OPEN.set((*_OPEN.get(), ledger)))
        with ledger.running():
            yield ledger
