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
    """What a pipeline is set up with: scheduler, gate, cut, and what its parallel calls cost; None without.

    An assignment to the pipeline's scheduler in the block takes the place of `scheduler` until the end of it.
    """

    scheduler: Any = None
    gate: TGateHandle | None = None
    cut: GuidanceCutHandle | None = None
    run: ParallelRun | None = None

    def put(self, scheduler: Any) -> bool:
        """Take what is assigned."""
        self.scheduler = scheduler
        return True


@contextlib.contextmanager
def configured(
    pipe: Any,
    scheduler: Any = None,
    *,
    gate: TGate | None = None,
    cut: GuidanceCut | None = None,
    parallel: Mapping[str, Any] | None = None,
    everywhere: bool = False,
) -> Iterator[Setup]:
    """In the block, and in its thread, `pipe` samples with `scheduler`, `gate`, `cut`, `parallelise(.., **parallel)`.

    `scheduler` is also that of the pipelines inside a combined one. None leaves the pipeline's own. In other threads
    `pipe` keeps its scheduler and its loop; with `everywhere` the scheduler is for all threads, and is what the
    pipeline is saved with. A gate and a cut are on its networks, for all threads. Blocks may be nested, and left in
    any order. Raises ValueError as :func:`fastsample.set_scheduler`, :meth:`fastsample.TGate.apply`,
    :meth:`fastsample.GuidanceCut.apply` and :func:`fastsample.parallelise` do, and leaves `pipe` as it was.
    """
    setup = Setup(scheduler)
    with contextlib.ExitStack() as undo:
        if scheduler is not None:
            for own in scheduled(pipe):
                if everywhere:
                    undo.callback(_note_scheduler, own)
                held = Attribute(lambda beneath: setup.scheduler, setup.put)
                undo.enter_context(overlaid(own, everywhere=everywhere, scheduler=held))
                if everywhere:
                    _note_scheduler(own)
        if gate is not None:
            setup.gate = undo.enter_context(gate.apply(pipe))
        if cut is not None:
            setup.cut = undo.enter_context(cut.apply(pipe))
        if parallel is not None:
            setup.run = undo.enter_context(parallelise(pipe, **parallel))
        yield setup


def _note_scheduler(pipe: Any) -> None:
    """Have the pipeline's config, which is saved as model_index.json, name the scheduler that it has now."""
    pipe.scheduler = pipe.scheduler
