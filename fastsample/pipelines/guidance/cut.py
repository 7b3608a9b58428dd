"""Guidance in some of the steps, and the conditional branch alone in the others; nothing is cached."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastsample.pipelines.counting import count_dropped
from fastsample.pipelines.denoisers import Denoiser, denoisers, timestep_reader
from fastsample.pipelines.guidance.caller import Branches, Caller
from fastsample.pipelines.guidance.perturbed import unperturbed
from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.guidance.rows import Batch, gathered
from fastsample.pipelines.guidance.steps import Run, Runs, check_scheduler
from fastsample.pipelines.layers import Layer, layered, layers_on
from fastsample.wording import counted

CUT = "guidance cut"


@dataclass(frozen=True)
class GuidanceCut:
    """Guide a pipeline in steps `start` <= step < `stop` alone: `with GuidanceCut(0, 10).apply(pipe): pipe(prompt)`.

    Integers are steps, which count from 0 and are the scheduler's; floats are fractions of a run's steps, each of
    which is step `int(fraction * steps)`, as in diffusers' guiders. In the other steps the network runs the
    conditional branch alone, as with a guidance scale of 1. For every pipeline whose guidance is copies in a batch,
    or further calls of its network; joint and perturbed attention too. Raises ValueError on values out of range.
    """

    start: int | float = 0
    stop: int | float = 1.0

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            value = getattr(self, name)
            fraction = isinstance(value, float) and 0 <= value <= 1
            if not fraction and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                raise ValueError(f"{name} = {value!r}: give a step (an integer from 0) or a fraction (0.0 to 1.0)")
        if self.start and isinstance(self.start, float) is not isinstance(self.stop, float):
            raise ValueError(f"start = {self.start!r}, stop = {self.stop!r}: give two steps, or two fractions")
        if not self.start < self.stop:
            raise ValueError(f"start = {self.start!r}, stop = {self.stop!r}: guidance would never be on; raise stop")

    def window(self, steps: int) -> tuple[int, int]:
        """The guided steps of a run of `steps` steps, from the first to before the last.

        ValueError beyond them, and where fractions leave none of them.
        """
        if isinstance(self.stop, float):
            first, end = int(self.start * steps), int(self.stop * steps)
            if first == end:
                asked = f"start = {self.start}, stop = {self.stop} with {counted(steps, 'step')}"
                raise ValueError(f"{asked}: guidance would never be on; raise stop")
            return first, end
        if self.stop > steps:
            raise ValueError(
                f"stop = {self.stop} with {counted(steps, 'step')}: guidance would never be cut; lower it"
            )
        return int(self.start), self.stop

    def apply(self, pipe: Any) -> GuidanceCutHandle:
        """Cut the guidance of `pipe`'s denoisers, until the handle's `remove` or the end of a `with`.

        Raises ValueError where `pipe` has no denoiser, or its guidance is cut already.
        """
        found = [denoiser for denoiser in denoisers(pipe) if denoiser.timestep]
        if not found:
            raise ValueError(f"pipe = {type(pipe).__name__} has no network that is called with a timestep")
        check_scheduler(pipe)
        for denoiser in found:
            if any(layer.name == CUT for layer in layers_on(denoiser)):
                raise ValueError(f"the guidance of pipe.{denoiser.name} is cut already: remove that handle first")
        return GuidanceCutHandle(self, pipe, found)


@dataclass(frozen=True)
class CutSummary:
    """What a guidance cut has done: calls of the pipeline, and evaluations of one branch of one image, by kind."""

    calls: int
    evaluations: int
    dropped: int

    @property
    def saved(self) -> float:
        """The share of evaluations that was not made."""
        total = self.evaluations + self.dropped
        return self.dropped / total if total else 0.0

    def __str__(self) -> str:
        total = self.evaluations + self.dropped
        return (
            f"{counted(self.calls, 'call')} of the pipeline: {self.evaluations} of {total} evaluations were made, "
            f"and {self.dropped} dropped with guidance ({self.saved:.1%})."
        )


@dataclass(eq=False)
class CutRun(Run):
    """A pass of the pipeline, and the conditional branch's output of the step."""

    conditional: Any = None


class GuidanceCutHandle:
    """A pipeline with its guidance cut, in every thread and for every pipeline that shares the network."""

    def __init__(self, cut: GuidanceCut, pipe: Any, found: list[Denoiser]) -> None:
        self.cut, self.pipe = cut, pipe
        self.runs = Runs(CutRun)
        self._counting = threading.Lock()
        self.reset()
        with contextlib.ExitStack() as undo:
            for denoiser in found:
                layer = Layer(CUT, _CutDenoiser(self, denoiser), self._forget)
                undo.enter_context(layered(denoiser.component, layer))
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Leave the pipeline as it was."""
        self._undo.close()
        self.runs = Runs(CutRun)

    def reset(self) -> None:
        """Forget all counts."""
        self.calls = self.evaluations = self.dropped = 0

    def summary(self) -> CutSummary:
        """Counts since the handle was made or reset, ControlNets aside."""
        return CutSummary(self.calls, self.evaluations, self.dropped)

    def begin(self, run: Run, caller: Caller, branches: Branches) -> None:
        """Count a call of the pipeline. Raises ValueError where there is nothing to cut, or it cannot be."""
        self.cut.window(run.steps_left)
        if not branches.guided and not branches.may_come:
            raise ValueError(
                f"{type(self.pipe).__name__} is called without guidance to cut (neither copies in the batch nor "
                "calls that its loop names as branches): remove() the guidance cut, or raise the guidance scale"
            )
        caller.check_momentum()
        if branches.calls and branches.copies[0] is not Branch.POSITIVE:
            raise ValueError(
                f"{type(self.pipe).__name__} calls its network for the negative branch first, before the one that "
                "would stand for it: its guidance cannot be cut"
            )
        self.count(calls=1)

    def count(self, *, calls: int = 0, evaluations: int = 0, dropped: int = 0) -> None:
        """Add to the counts, which are of all threads."""
        with self._counting:
            self.calls += calls
            self.evaluations += evaluations
            self.dropped += dropped

    def _forget(self) -> None:
        self.runs.current = None

    def __enter__(self) -> GuidanceCutHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class _CutDenoiser:
    """What is called in place of a denoiser: it evaluates the rows that are wanted, and fills in the others."""

    def __init__(self, handle: GuidanceCutHandle, denoiser: Denoiser) -> None:
        self._handle, self._denoiser = handle, denoiser
        self._timestep = timestep_reader(denoiser.module)
        self._lock = threading.RLock()  # held while attention is, or is not, perturbed

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def __call__(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        handle = self._handle
        caller = Caller.find(handle.pipe)
        branches = caller.branches(self._denoiser.name)
        timestep = self._timestep(args, kwargs)
        group = self._denoiser.group
        run = handle.runs.enter(caller, group, timestep, branches, lambda new: handle.begin(new, caller, branches))
        batch = Batch(beneath, args, kwargs, branches)
        guided = self._guided(run, batch)
        if not branches.perturbed_attention:
            return self._evaluated(run, batch, guided, contextlib.nullcontext)
        with self._lock:
            return self._evaluated(run, batch, guided, lambda: unperturbed(caller, self._denoiser.module))

    def _guided(self, run: CutRun, batch: Batch) -> list[bool]:
        """Whether each row of a branch is at a guided step, or all are evaluated anyway."""
        start, stop = self._handle.cut.window(run.steps_left)
        steps = run.steps_of(self._denoiser.group, batch.branches)
        whole = batch.narrowed or not batch.branches.guided
        guided = [whole or start <= step < stop for step in steps]
        return guided * batch.each if len(guided) == 1 else guided

    def _evaluated(
        self,
        run: CutRun,
        batch: Batch,
        guided: list[bool],
        unperturbed: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> Any:
        """The output for all rows: those of guided steps, and of the others the conditional branch in each branch."""
        copies, each = batch.copies, batch.each
        place = copies.index(Branch.POSITIVE) if Branch.POSITIVE in copies else None
        first, whole, source = each * (place or 0), [], list(range(batch.rows))
        conditional: list[int] = []
        for row in source:
            if guided[row % each]:
                whole.append(row)
            elif row // each == place:
                conditional.append(row)
        self._count(len(whole) + len(conditional), batch.rows)
        parts = []
        if place is None and len(whole) < batch.rows:  # a call for another branch, after that for the conditional one
            parts.append(batch.part(source, run.conditional))
        if batch.branches.perturbed_attention and conditional:
            with unperturbed():
                parts.append(batch.evaluate(conditional))
            conditional = []
        if whole or conditional:
            parts.append(batch.evaluate(sorted(whole + conditional)))
        if place is not None and len(whole) < batch.rows:
            run.conditional = gathered(parts, range(first, first + each))
            source = [row if guided[row % each] else first + row % each for row in source]
        return gathered(parts, source)

    def _count(self, evaluated: int, rows: int) -> None:
        if not self._denoiser.is_controlnet:
            self._handle.count(evaluations=evaluated, dropped=rows - evaluated)
            count_dropped(rows - evaluated)
