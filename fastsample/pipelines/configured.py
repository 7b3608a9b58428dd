"""A pipeline set up for a block: another scheduler, T-GATE, a guidance cut, parallel sampling; undone whatever
happens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastsample.pipelines.guidance import GuidanceCut, GuidanceCutHandle
from fastsample.pipelines.overlay import Attribute, overlaid
from fastsample.pipelines.parallel import ParallelRun, parallelise
from fastsample.pipelines.swap import scheduled
from fastsample.pipelines.tgate import TGate, TGateHandle


@dataclass
class Setup:
    """What a pipeline is set up with: its gate, its cut, and what its parallel calls cost; None without."""

    gate: TGateHandle | None = None
    cut: GuidanceCutHandle | None = None
    run: ParallelRun | None = None


@contextlib.contextmanager
def configured(
    pipe: Any,
    scheduler: Any = None,
    *,
    gate: TGate | None = None,
    cut: GuidanceCut | None = None,
    parallel: Mapping[str, Any] | None = None,
) -> Iterator[Setup]:
    """In the block, and in its thread, `pipe` samples with `scheduler`, `gate`, `cut`, `parallelise(.., **parallel)`.

    `scheduler` is also that of the pipelines inside a combined one. None leaves the pipeline's own. In other threads
    `pipe` keeps its scheduler and its loop; a gate and a cut are on its networks, for all threads. Blocks may be
    nested, and left in any order. Raises ValueError as :func:`fastsample.set_scheduler`,
    :meth:`fastsample.TGate.apply`, :meth:`fastsample.GuidanceCut.apply` and :func:`fastsample.parallelise` do, and
    leaves `pipe` as it was.
    """
    setup = Setup()
    with contextlib.ExitStack() as undo:
        if scheduler is not None:
            held = _Held(scheduler)
            for own in scheduled(pipe):
                undo.enter_context(overlaid(own, scheduler=Attribute(held.get, held.put)))
        if gate is not None:
            setup.gate = undo.enter_context(gate.apply(pipe))
        if cut is not None:
            setup.cut = undo.enter_context(cut.apply(pipe))
        if parallel is not None:
            setup.run = undo.enter_context(parallelise(pipe, **parallel))
        yield setup


@dataclass
class _Held:
    """A block's scheduler, which an assignment in the block replaces."""

    scheduler: Any

    def get(self, beneath: Any) -> Any:
        """In place of the pipeline's own."""
        del beneath
        return self.scheduler

    def put(self, scheduler: Any) -> bool:
        """Take the place of it until the end of the block."""
        self.scheduler = scheduler
        return True
