"""Drives a pipeline's own sampling loop by sweeps: many rows in its denoiser's calls, contracted by its scheduler.

The pipeline keeps its prompt encoding, guidance, callbacks and decoding. Its loop runs once a sweep: it iterates over
the timesteps of the windows' first rows, its denoiser's calls are expanded to the windows' rows, and what it hands to
`scheduler.step` moves whole windows. Every assumption in that is checked on the way, before anything that rests on it
is committed; :class:`NotParallelError` says which one failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsample.fixed_point.iterations import ParallelReport
from fastsample.pipelines.denoisers import inner
from fastsample.pipelines.parallel.layout import Call, NotParallelError, bind
from fastsample.pipelines.parallel.segment import Rows, Segment, Settings
from fastsample.pipelines.parallel.stepping import Stepper, next_sample, same_arguments


class Phase(Enum):
    """Where a pipeline is in its loop."""

    PLAIN = "plain"  # it has a timestep, of which it is to make a plain step
    SWEEPING = "sweeping"  # it has a timestep, and its denoisers are given the rows of a sweep
    STEPPED = "stepped"  # it has made the step, and not asked for the next timestep
    LISTED = "listed"  # it asked for the next timestep without a step: it wants to know them all
    ENDED = "ended"  # all steps are committed, or it was interrupted


FOLLOWING = {
    Phase.PLAIN: {Phase.STEPPED, Phase.LISTED, Phase.ENDED},
    Phase.SWEEPING: {Phase.STEPPED, Phase.ENDED},
    Phase.STEPPED: {Phase.PLAIN, Phase.SWEEPING, Phase.ENDED},
    Phase.LISTED: set[Phase](),
    Phase.ENDED: set[Phase](),
}
"""The phases that a phase can be followed by."""


@dataclass
class Loop:
    """One pass over a pipeline's timesteps: segments that each start with a plain step, to see what its calls are."""

    scheduler: Any
    timesteps: list[Tensor]
    settings: Settings
    phase: Phase = Phase.PLAIN
    committed: int = 0
    plain_steps: int = 0
    reports: list[ParallelReport] = field(default_factory=list)
    unreported: dict[int, Tensor] = field(default_factory=dict)  # committed samples by the step that made them
    _stepper: Stepper | None = None
    _sample: Tensor | None = None  # what the last step returned
    _calls: list[tuple[nn.Module, Call]] = field(default_factory=list)
    _segment: Segment | None = None
    _final: dict[int, Tensor] = field(default_factory=dict)  # samples by step that are final for some images

    @property
    def stepping(self) -> bool:
        """Whether the pipeline has a timestep and is to step."""
        return self.phase in (Phase.PLAIN, Phase.SWEEPING)

    @property
    def running(self) -> bool:
        """Whether steps have been made and are left to make."""
        return self._stepper is not None and self.phase is not Phase.ENDED

    @property
    def sweeping(self) -> bool:
        """Whether a step of the pipeline is a sweep."""
        return self.phase is Phase.SWEEPING

    @property
    def share(self) -> float:
        """The consistency model's share in this step."""
        return self._segment.share if self._segment and self.sweeping else 0.0

    @property
    def draws_from_all(self) -> bool:
        """Whether steps have drawn from streams that are of all threads."""
        return self._stepper is not None and self._stepper.draws_from_all

    @property
    def places(self) -> list[int]:
        """Where in the timesteps the rows of a denoiser's call lie: one place for all of them in a plain step."""
        return [self.committed] if self._segment is None else self._segment.places

    def __iter__(self) -> Iterator[Tensor]:
        """The timestep of each pass through the pipeline's loop; all of them, in turn, to who makes no step."""
        yield self.timesteps[0]
        if self.phase is Phase.PLAIN and not self.settings.interrupted():
            self._enter(Phase.LISTED)
            yield from self.timesteps[1:]
            return
        while self.phase is Phase.STEPPED and not self.settings.interrupted():
            self._enter(Phase.SWEEPING if self._segment else Phase.PLAIN)
            yield self.timesteps[self.committed]
            if self.stepping and not self.settings.interrupted():
                raise NotParallelError("the pipeline's loop went round without a step of its scheduler")
        if self.phase is not Phase.ENDED:
            self._enter(Phase.ENDED)

    def _enter(self, phase: Phase) -> None:
        assert phase in FOLLOWING[self.phase], f"{self.phase} is not followed by {phase}"
        self.phase = phase

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """What the denoiser gets for the arguments that the pipeline gives it; None to leave them."""
        module = inner(module)
        call, number = bind(module, args, kwargs), len(self._calls)
        self._calls.append((module, call))
        if self._segment is None:
            return None
        assert self._stepper is not None
        assert self._sample is not None
        layout = self._segment.layout(number, module)
        layout.check_latents(call, self._stepper.scaled(self.committed, self._sample))
        layout.check_timestep(call, self.timesteps[self.committed])
        layout.check_rest(call)
        expanded = layout.expand(call, *self._segment.inputs())
        self._stepper.go_to(self.committed)
        return expanded

    def step(self, output: Tensor, timestep: Any, sample: Tensor, arguments: dict[str, Any]) -> Any:
        """What the pipeline gets for what it hands to `scheduler.step`."""
        given = self.timesteps[self.committed] if self.stepping else None
        if given is None or (timestep is not given and bool(timestep != given)):
            raise NotParallelError("the pipeline's loop does not step once for each timestep")
        if self._stepper is None:
            self._stepper = Stepper(self.scheduler, self.timesteps, arguments, sample)
        if self._sample is not None and not same_latents(sample, self._sample):
            raise NotParallelError(
                "the latents are changed between two steps (blended with an image, or by a callback)"
            )
        if not same_arguments(self._stepper.arguments, arguments):
            raise NotParallelError("the arguments of the scheduler's step change from step to step")
        calls, self._calls = self._calls, []
        before, held = self.committed, self.share > 0
        if self._segment is None:
            result = self._plain_step(calls, output, sample)
        else:
            result = self._sweep(self._segment, calls, output)
        self._sample = next_sample(result)
        self._stepper.go_to(self.committed)
        known = [int(self._segment.known.steps.min())] if self._segment and self._segment.known else []
        self._stepper.forget(min([self.committed, *known]))
        assert before < self.committed or held
        self._enter(Phase.ENDED if self.committed == len(self.timesteps) else Phase.STEPPED)
        return result

    def _plain_step(self, calls: list[tuple[nn.Module, Call]], output: Tensor, sample: Tensor) -> Any:
        """A step as the pipeline makes it, and the segment that follows."""
        assert self._stepper is not None
        step = self.committed
        if self.settings.shares:
            given = [value for _, call in calls for value in call.values() if isinstance(value, Tensor)]
            self.settings.shares.check_agreement([sample, *given])
            output = self.settings.shares.broadcast(output)
        result = self._stepper.step(step, sample, output)
        self.plain_steps, self.committed = self.plain_steps + 1, step + 1
        if self.settings.reporting:
            self.unreported[step] = next_sample(result)
        end = next(end for end in [*self.settings.cuts(self.timesteps), len(self.timesteps)] if end > step)
        if end > step + 1:
            # a copy: pipelines write the next sample where this one is
            known = Rows(torch.full((1, len(sample)), step), sample[None].clone(), output[None])
            on_commit = self._collect if self.settings.reporting else None
            self._segment = Segment(self._stepper, self.settings, known, end, result, calls, on_commit)
            self.reports.append(self._segment.fixed.report)
        return result

    def _sweep(self, segment: Segment, calls: list[tuple[nn.Module, Call]], output: Tensor) -> Any:
        """Move a segment's windows by the outputs of all their rows."""
        if len(calls) != len(segment.layouts):
            raise NotParallelError("the denoisers called change from step to step")
        rounds = self.plain_steps + sum(report.sweeps for report in self.reports) + 1
        segment.sweep(output, last=rounds == self.settings.rounds)
        before, self.committed = self.committed, segment.start + int(segment.fixed.begin.numpy().min())
        sample = segment.fixed.leading  # where nobody asks for each step's, an image that has come further is further
        if self.settings.reporting and before < self.committed:
            self.unreported |= {step: self._final.pop(step) for step in range(before, self.committed)}
            sample = self.unreported[self.committed - 1]
        if segment.fixed.done:
            self._segment = None
        return segment.result(sample)

    def _collect(self, first: NDArray[np.int64], states: Tensor, count: NDArray[np.int64]) -> None:
        """Keep the samples that a sweep made final, each image's from its own step on."""
        assert self._segment is not None
        for item, (state, many) in enumerate(zip(first, count, strict=True)):
            for row in range(many):
                step = self._segment.start + int(state) + row - 1
                self._final.setdefault(step, torch.empty_like(states[0]))[item] = states[row, item]


def same_latents(sample: Tensor, returned: Tensor) -> bool:
    """Whether a step is given what the one before returned."""
    return sample is returned or torch.equal(sample, returned)
