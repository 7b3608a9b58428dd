"""`with fastsample.graphs(pipe):` a pipeline's denoisers as CUDA graphs, one for each shape they are called with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from fastsample.pipelines.denoisers import denoisers, inner
from fastsample.sampling.replay import Counts, GraphedForward, check_hooks

SHAPES = 4
"""Kinds of calls that a network is captured for: each holds the memory of a call."""


@contextmanager
def graphs(pipe: Any, *, shapes: int = SHAPES) -> Iterator[Counts]:
    """Inside, each denoiser of `pipe` (or `pipe` itself, a module) replays a CUDA graph; yields what was counted.

        with fastsample.graphs(pipe) as counts:
            fastsample.ParallelSampler(pipe, iteration="secant", window=16)(prompt)

    For loops that call a network over and over in one shape: pipelines at a fixed size, and the rounds of a parallel
    sampler made inside, whose rows are padded to one number. The first call of a kind captures; later ones copy their
    tensors in and replay. Kinds past the first `shapes` run as they are. On the CPU the calls run without a graph.

    A call returns new tensors without gradients. Raises ValueError for a pipeline without denoisers, a network that
    has hooks or is compiled, and arguments that cannot be compared; RuntimeError where a network cannot be captured.
    """
    modules = [pipe] if isinstance(pipe, nn.Module) else [denoiser.component for denoiser in denoisers(pipe)]
    if not modules:
        raise ValueError(f"pipe = {type(pipe).__name__}: it has no denoiser; give a pipeline or a module")
    for module in modules:
        if inner(module) is not module or module._compiled_call_impl is not None:
            raise ValueError(f"{type(inner(module)).__name__} is compiled: torch.compile's mode does the same there")
        check_hooks(module)
    counts = Counts()
    with ExitStack() as undo:
        for module in modules:
            vars(module)["forward"] = GraphedForward(module, shapes, counts)
            undo.callback(vars(module).pop, "forward", None)
        yield counts
