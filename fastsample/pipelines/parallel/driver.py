"""Drives a pipeline's own sampling loop by sweeps: many rows in its denoiser's calls, contracted by its scheduler.

The pipeline keeps its prompt encoding, guidance, callbacks and decoding. Its loop runs once a sweep: it iterates over
the timesteps of the windows' first rows, its denoiser's calls are expanded to the windows' rows, and what it hands to
`scheduler.step` moves whole windows. Every assumption in that is checked on the way, before anything that rests on it
is committed; :class:`NotParallelError` says which one failed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.fixed_point.iterations import FixedPoint, ParallelReport, check_settings
from fastsample.fixed_point.updates import make_update
from fastsample.pipelines.denoisers import inner
from fastsample.pipelines.parallel.conversion import TimestepConversion
from fastsample.pipelines.parallel.distributed import RowShares
from fastsample.pipelines.parallel.layout import Call, CallLayout, NotParallelError, bind
from fastsample.pipelines.parallel.stepping import (
    SchedulerTrajectory,
    Stepper,
    next_sample,
    same_arguments,
    scheduler_nodes,
    with_sample,
)

CHECKED_SWEEPS = 2
"""Sweeps of a segment that evaluate one more row, whose output is known."""


@dataclass(frozen=True)
class Settings:
    """How a loop is sampled; `cuts(timesteps)` are the steps that a window does not cross, `constant_rows` pads.

    `on_sweep` is called after every sweep of a segment. Raises ValueError as :func:`check_settings` does.
    """

    iteration: str
    window: int | None
    tolerance: float
    cuts: Callable[[list[Tensor]], list[int]]
    constant_rows: bool
    interrupted: Callable[[], bool]
    shares: RowShares | None = None
    on_sweep: Callable[[FixedPoint], None] | None = None

    def __post_init__(self) -> None:
        check_settings(self.iteration, self.window, self.tolerance)


@dataclass
class Loop:
    """One pass over a pipeline's timesteps: segments that each start with a plain step, to see what its calls are."""

    scheduler: Any
    timesteps: list[Tensor]
    settings: Settings
    committed: int = 0
    reports: list[ParallelReport] = field(default_factory=list)
    plain_steps: int = 0
    unreported: dict[int, Tensor] = field(default_factory=dict)  # committed samples by the step that made them
    _offered: int = 0
    _stepper: Stepper | None = None
    _sample: Tensor | None = None  # what the last step returned
    _calls: list[tuple[nn.Module, Call]] = field(default_factory=list)
    _segment: _Segment | None = None

    @property
    def offered(self) -> bool:
        """Whether the pipeline is in a pass of its loop."""
        return self._offered > self.passes

    @property
    def running(self) -> bool:
        """Whether steps have been made and are left to make."""
        return self._stepper is not None and self.committed < len(self.timesteps)

    def __iter__(self) -> Iterator[Tensor]:
        """The timestep of each pass through the pipeline's loop; all of them, in turn, to who makes no step."""
        self._offered = 1
        yield self.timesteps[0]
        if self._stepper is None:
            for timestep in self.timesteps[1:]:
                self._offered += 1
                yield timestep
        while self.running and not self.settings.interrupted():
            self._offered += 1
            yield self.timesteps[self.committed]
            if self._offered > self.passes and not self.settings.interrupted():
                raise NotParallelError("the pipeline's loop went round without a step of its scheduler")

    @property
    def passes(self) -> int:
        """Times that the pipeline went through its loop."""
        return self.plain_steps + sum(report.sweeps for report in self.reports)

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Call, int] | None:
        """What the denoiser gets for the arguments that the pipeline gives it, and its rows; None to leave them."""
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
        return expanded, len(expanded[layout.argument])

    def step(self, output: Tensor, timestep: Any, sample: Tensor, arguments: dict[str, Any]) -> Any:
        """What the pipeline gets for what it hands to `scheduler.step`."""
        if self._stepper is None:
            self._stepper = Stepper(self.scheduler, self.timesteps, arguments, sample)
        if self._offered != self.passes + 1 or bool(timestep != self.timesteps[self.committed]):
            raise NotParallelError("the pipeline's loop does not step once for each timestep")
        if self._sample is not None and not same_latents(sample, self._sample):
            raise NotParallelError(
                "the latents are changed between two steps (blended with an image, or by a callback)"
            )
        if not same_arguments(self._stepper.arguments, arguments):
            raise NotParallelError("the arguments of the scheduler's step change from step to step")
        calls, self._calls = self._calls, []
        before = self.committed
        if self._segment is None:
            result = self._plain_step(calls, output, sample)
        else:
            result = self._sweep(self._segment, calls, output)
        self._sample = next_sample(result)
        self._stepper.go_to(self.committed)
        known = [int(self._segment.known.steps.min())] if self._segment else []
        self._stepper.forget(min([self.committed, *known]))
        assert before < self.committed
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
        self.unreported[step] = next_sample(result)
        end = next(end for end in [*self.settings.cuts(self.timesteps), len(self.timesteps)] if end > step)
        if end > step + 1:
            known = _Rows(torch.full((1, len(sample)), step), sample[None], output[None])
            self._segment = _Segment(self._stepper, self.settings, known, end, next_sample(result), calls)
            self.reports.append(self._segment.fixed.report)
        return result

    def _sweep(self, segment: _Segment, calls: list[tuple[nn.Module, Call]], output: Tensor) -> Any:
        """Move a segment's windows by the outputs of all their rows."""
        if len(calls) != len(segment.layouts):
            raise NotParallelError("the denoisers called change from step to step")
        segment.sweep(output)
        states = segment.fixed.trajectory
        begin = int(segment.fixed.begin.min())
        for step in range(self.committed, segment.start + begin):
            self.unreported[step] = states[step + 1 - segment.start]
        self.committed = segment.start + begin
        if segment.fixed.done:
            self._segment = None
        return with_sample(segment.latest, states[begin])


@dataclass
class _Rows:
    """Steps [R, B] and samples [R, B, ..], and outputs where they are known."""

    steps: Tensor
    samples: Tensor
    outputs: Tensor


class _Segment:
    """Sweeps over the steps from the one after `known`, a plain step with its sample and output, to `end`."""

    def __init__(
        self,
        stepper: Stepper,
        settings: Settings,
        known: _Rows,
        end: int,
        sample: Tensor,
        calls: list[tuple[nn.Module, Call]],
    ) -> None:
        self._stepper, self.known = stepper, known
        plain = int(known.steps[0, 0])
        self.start = plain + 1
        self.layouts = [
            CallLayout.learn(
                module, call, stepper.scaled(plain, known.samples[0]), TimestepConversion(stepper.train_steps)
            )
            for module, call in calls
        ]
        if not self.layouts:
            raise NotParallelError(
                "the pipeline steps its scheduler without a call of a denoiser that has a timestep"
            )
        for layout in self.layouts:
            layout.check_timestep(layout.call, stepper.timesteps[plain])
        nodes = scheduler_nodes(stepper.scheduler, stepper.timesteps)
        if nodes is None and settings.tolerance > 0:
            raise NotParallelError(
                f"tolerance = {settings.tolerance:g} is relative to a noise schedule, and that of "
                f"{type(stepper.scheduler).__name__} is not understood: use tolerance = 0"
            )
        self._trajectory = SchedulerTrajectory(stepper, self.start, end, sample, known.outputs[0], nodes)
        update = make_update(settings.iteration)
        self.fixed = FixedPoint(self._trajectory, update, window=settings.window, tolerance=settings.tolerance)
        self._on_sweep = settings.on_sweep
        self._constant = self.fixed.window + 1 if settings.constant_rows else 0
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._rows = self._asked()

    @property
    def latest(self) -> Any:
        """What the scheduler's step returned last."""
        return self._trajectory.latest

    def layout(self, number: int, module: nn.Module) -> CallLayout:
        """The layout of a step's call `number`; NotParallelError when it was not a call of `module`."""
        if number >= len(self.layouts) or self.layouts[number].module is not module:
            raise NotParallelError("the denoisers called change from step to step")
        return self.layouts[number]

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The samples [R, B, ..] of this sweep's rows as scaled for the network, and their timesteps [R, B]."""
        if self._inputs is None:
            steps, samples = self._rows.steps, self._rows.samples
            timesteps = torch.stack(list(self._stepper.timesteps))[steps.to(self._stepper.timesteps[0].device)]
            self._inputs = self._stepper.scaled_rows(steps, samples), timesteps
        return self._inputs

    def sweep(self, output: Tensor) -> None:
        """Take the guided outputs of all rows, flattened."""
        rows = self._rows
        count, items = rows.steps.shape
        if len(output) != count * items:
            raise NotParallelError(
                f"{count} rows of {items} images were evaluated, and {len(output)} outputs given to the scheduler"
            )
        outputs = output.reshape(count, items, *output.shape[1:])
        window = len(self.fixed.rows)
        if self._checked:
            self._check(outputs[0])
            rows = _Rows(rows.steps[1:], rows.samples[1:], outputs[1:])
        outputs = outputs[int(self._checked) :][:window]
        last = window - 1
        self.known = _Rows(rows.steps[last:window], rows.samples[last:window], outputs[last:])
        if self.fixed.report.sweeps == 0:
            self._check_repeats(rows.samples[0], outputs[0])
        self.fixed.sweep(outputs)
        if self._on_sweep is not None:
            self._on_sweep(self.fixed)
        self._inputs = None
        if not self.fixed.done:
            self._rows = self._asked()

    @property
    def _checked(self) -> bool:
        return self.fixed.report.sweeps < CHECKED_SWEEPS

    def _asked(self) -> _Rows:
        """What this sweep evaluates: perhaps a known row, the windows' rows, and copies of the last as padding."""
        steps, samples = self.fixed.rows + self.start, self.fixed.states
        if self._checked:
            steps = torch.cat([self.known.steps, steps])
            samples = torch.cat([self.known.samples, samples])
        missing = max(0, self._constant - len(steps))
        steps = torch.cat([steps, steps[-1:].expand(missing, -1)])
        samples = torch.cat([samples, samples[-1:].expand(missing, *samples.shape[1:])])
        return _Rows(steps, samples, samples)

    def _check(self, again: Tensor) -> None:
        """NotParallelError unless the known row has the same output among others as it had before."""
        known = self.known.outputs[0].to(again)
        narrow = [
            value.dtype for layout in self.layouts for value in layout.call.values() if isinstance(value, Tensor)
        ]
        eps = max(torch.finfo(dtype).eps for dtype in [again.dtype, *narrow] if dtype.is_floating_point)
        difference, size = (value.flatten(1).double().square().mean(-1).sqrt() for value in (again - known, known))
        if not bool((difference <= eps**0.5 * size).all()):
            worst = float((difference / size).max())
            raise NotParallelError(
                f"a row evaluated again, beside others, differs by {worst:.1e} (rows are mixed, guidance is not copy "
                "by copy, or something depends on the step)"
            )

    def _check_repeats(self, sample: Tensor, output: Tensor) -> None:
        """NotParallelError unless a step of the scheduler made again is the same."""
        once, again = (next_sample(self._stepper.step(self.start, sample, output)) for _ in range(2))
        if not torch.equal(once, again):
            raise NotParallelError("a step made again is another: the scheduler draws from a source of its own")


def same_latents(sample: Tensor, returned: Tensor) -> bool:
    """Whether a step is given what the one before returned."""
    return sample is returned or torch.equal(sample, returned)
