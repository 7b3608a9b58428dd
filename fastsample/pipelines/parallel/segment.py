"""Sweeps over a stretch of a pipeline's steps, and the checks that its denoisers' calls bear many rows at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastsample.fixed_point.coarse import Strides
from fastsample.fixed_point.iterations import FixedPoint, check_settings
from fastsample.fixed_point.updates import make_update
from fastsample.pipelines.parallel.consistency import Consistency, FromGuess
from fastsample.pipelines.parallel.conversion import TimestepConversion
from fastsample.pipelines.parallel.distributed import RowShares
from fastsample.pipelines.parallel.layout import Call, CallLayout, NotParallelError
from fastsample.pipelines.parallel.rounding import allowed_difference
from fastsample.pipelines.parallel.stepping import (
    RemainingTrajectory,
    SchedulerTrajectory,
    Stepper,
    next_sample,
    scheduler_nodes,
)

CHECKED_SWEEPS = 2
"""Sweeps of a segment that evaluate one more row, whose output is known."""


@dataclass(frozen=True)
class Settings:
    """How a loop is sampled; `cuts(timesteps)` are the steps that a window does not cross, `constant_rows` pads.

    `on_sweep` is called after every sweep of a segment. With `reporting` every step's samples are kept until a
    callback has had them. `consistency` has its share in the first sweeps, and `rounds` end a loop. Raises ValueError
    as :func:`check_settings` does, and for fewer rounds than 2.
    """

    iteration: str
    window: int | None
    tolerance: float
    cuts: Callable[[list[Tensor]], list[int]]
    constant_rows: bool
    interrupted: Callable[[], bool]
    shares: RowShares | None = None
    on_sweep: Callable[[FixedPoint], None] | None = None
    strides: Strides = "auto"
    reporting: bool = False
    consistency: Consistency | None = None
    rounds: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.iteration, self.window, self.tolerance, self.strides)
        if self.rounds is not None and (not isinstance(self.rounds, int) or self.rounds < 2):
            raise ValueError(
                f"rounds = {self.rounds!r}: give 2 (a plain step and a sweep) or more, or None for no bound"
            )
        if self.consistency is not None and self.strides != "none":
            raise ValueError(f"strides = {self.strides!r}: consistency's sweeps evaluate all rows, leave strides out")

    def share(self, sweep: int) -> float:
        """The consistency model's in sweep 0, 1, .. of a segment."""
        return 0.0 if self.consistency is None else self.consistency.share(sweep)


@dataclass
class Rows:
    """Steps [R, B] and samples [R, B, ..], and outputs where they are known."""

    steps: Tensor
    samples: Tensor
    outputs: Tensor


class Segment:
    """Sweeps over the steps from the one after `known`, a plain step with its sample and output, to `end`.

    `made` is what the plain step returned; `on_commit` is :class:`FixedPoint`'s.
    """

    def __init__(
        self,
        stepper: Stepper,
        settings: Settings,
        known: Rows,
        end: int,
        made: Any,
        calls: list[tuple[nn.Module, Call]],
        on_commit: Callable[[NDArray[np.int64], Tensor, NDArray[np.int64]], None] | None = None,
    ) -> None:
        self._stepper = stepper
        self.known: Rows | None = known  # whose outputs are known
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
        self._settings = settings
        self.share = settings.share(0)  # the consistency model's in this sweep
        self._lams = [node.lam for node in nodes[self.start : end]] if nodes else None
        self._held = 0  # the sweeps with a share
        sample, output = next_sample(made), known.outputs[0]
        self._trajectory: RemainingTrajectory | SchedulerTrajectory
        remaining = stepper.remaining(self.start, sample) if nodes else None
        if remaining is None or nodes is None:
            self._trajectory = SchedulerTrajectory(stepper, self.start, end, sample, output, nodes)
        else:
            own = nodes[self.start : end + 1]
            self._trajectory = RemainingTrajectory(stepper, remaining, self.start, sample, output, own, made)
        self.fixed = FixedPoint(
            self._trajectory,
            FromGuess() if settings.consistency else make_update(settings.iteration),
            window=settings.window,
            tolerance=settings.tolerance,
            strides=settings.strides,
            keep=settings.on_sweep is not None,
            on_commit=on_commit,
        )
        self._constant = self.fixed.window + 1 if settings.constant_rows else 1
        self._timesteps = torch.stack(list(stepper.timesteps))
        self._steps = self._asked_steps()

    def result(self, sample: Tensor) -> Any:
        """What the scheduler's step returns that makes the last state final for all, `sample`."""
        return self._trajectory.result(int(self.fixed.begin.numpy().min()), sample)

    @property
    def places(self) -> list[int]:
        """The numbers of this sweep's rows, one row of images after the other."""
        places: list[int] = self._steps.flatten().tolist()
        return places

    def layout(self, number: int, module: nn.Module) -> CallLayout:
        """The layout of a step's call `number`; NotParallelError when it was not a call of `module`."""
        if number >= len(self.layouts) or self.layouts[number].module is not module:
            raise NotParallelError("the denoisers called change from step to step")
        return self.layouts[number]

    def inputs(self) -> tuple[Tensor, Tensor]:
        """The samples [R, B, ..] of this sweep's rows as scaled for the network, and their timesteps [R, B]."""
        samples, known = self.fixed.states, self._checked
        if known is not None:
            samples = torch.cat([known.samples, samples])
        missing = len(self._steps) - len(samples)
        if missing:
            samples = torch.cat([samples, samples[-1:].expand(missing, *samples.shape[1:])])
        timesteps = self._timesteps[self._steps.to(self._timesteps.device)]
        return self._stepper.scaled_rows(self._steps, samples), timesteps

    def sweep(self, output: Tensor, *, last: bool = False) -> None:
        """Take the guided outputs of all rows, flattened; after the `last` sweep all is as it is guessed."""
        count, items = self._steps.shape
        if len(output) != count * items:
            raise NotParallelError(
                f"{count} rows of {items} images were evaluated, and {len(output)} outputs given to the scheduler"
            )
        outputs = output.reshape(count, items, *output.shape[1:])
        if self._checked is not None:
            self._check(outputs[0], self._checked.outputs[0])
            outputs = outputs[1:]
        rows = self.fixed.rows
        outputs = outputs[: len(rows)]
        if self.fixed.report.sweeps == 0 and isinstance(self._trajectory, SchedulerTrajectory):
            self._check_repeats(self.fixed.states[0], outputs[0])
        if not self.share:
            self.known = None
            if self.fixed.report.sweeps + 1 < self._held + CHECKED_SWEEPS:
                self.known = Rows(*(part[-1:].clone() for part in (rows + self.start, self.fixed.states, outputs)))
        self.fixed.sweep(outputs, hold=self.share > 0, last=last)
        if self._settings.on_sweep is not None:
            self._settings.on_sweep(self.fixed)
        if self.share:
            self._fade()
        if not self.fixed.done:
            self._steps = self._asked_steps()

    def _fade(self) -> None:
        """Go on to the next sweep's share; the denoiser's own sweeps are an iteration of their own."""
        self._held = self.fixed.report.sweeps
        self.share = self._settings.share(self._held)
        consistency = self._settings.consistency
        if not self.share and consistency is not None:
            self.fixed.update = consistency.own_update(self._settings.iteration, self._lams)

    @property
    def _checked(self) -> Rows | None:
        """What this sweep evaluates again."""
        return None if self.share else self.known

    def _asked_steps(self) -> Tensor:
        """What this sweep evaluates: perhaps a known row, the windows' rows, and copies of the last as padding."""
        steps = torch.from_numpy(self.fixed.rows.numpy() + self.start)
        if self._checked is not None:
            steps = torch.cat([self._checked.steps, steps])
        # few shapes for what is compiled: all rows of a window, or for coarse sweeps a quarter, a half, ..
        shape = -(-self._constant // 4) if self.fixed.coarse else self._constant
        missing = -len(steps) % shape
        return torch.cat([steps, steps[-1:].expand(missing, -1)]) if missing else steps

    def _check(self, again: Tensor, before: Tensor) -> None:
        """NotParallelError unless the known row has the same output among others as it had before."""
        known = before.to(again)
        given = [value for layout in self.layouts for value in layout.call.values() if isinstance(value, Tensor)]
        difference, size = (value.flatten(1).double().square().mean(-1).sqrt() for value in (again - known, known))
        if not bool((difference <= allowed_difference(again, given) * size).all()):
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
