"""A pipeline's own scheduler as a trajectory: its real `step` from any point, with what it held there."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastsample.fixed_point.trajectory import SteppedTrajectory
from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.parallel.streams import Drawn, Streams
from fastsample.pipelines.stateful import stateful
from fastsample.schedules.base import Node


class Stepper:
    """Steps of `scheduler`, of any class, at `timesteps`; `arguments` are the other ones of its `step`.

    Before each step the scheduler and the generators are put back to where they were when the steps before it had
    been made, so that a step can be made again, and draws the same noise.
    """

    def __init__(self, scheduler: Any, timesteps: Sequence[Tensor], arguments: dict[str, Any], like: Tensor) -> None:
        self.scheduler, self.timesteps, self.arguments = scheduler, timesteps, arguments
        self._step = class_beneath(scheduler).step  # type: ignore[attr-defined]
        self._run = stateful(scheduler)
        self._generators = Streams(arguments.get("generator"))
        self._draws = False  # whether a step has drawn: streams that none draws from are left alone
        self._like = like, like  # a sample and an output
        self._scales: bool | None = None  # whether the network's input is another tensor than the sample
        self._states: dict[int, Any] = {0: self._run.state()}
        self._streams: dict[int, Drawn] = {0: self._generators.state()}

    def go_to(self, index: int) -> None:
        """Put the scheduler where step `index` comes next; steps before were made at least once."""
        self._run.restore(self._states[index])
        if self._draws:
            self._generators.restore(self._streams[index])

    def step(self, index: int, sample: Tensor, output: Tensor) -> Any:
        """What the scheduler's `step` number `index` returns."""
        self.go_to(index)
        self._like = sample, output
        before = self._generators.state()
        result = self._step(self.scheduler, output, self.timesteps[index], sample, **self.arguments)
        self._states[index + 1] = self._run.state()
        after = self._generators.state()
        self._draws = self._draws or after != before
        self._streams.setdefault(index + 1, after)
        return result

    @property
    def train_steps(self) -> float:
        """The timesteps that the model was trained on."""
        return float(self.scheduler.config.get("num_train_timesteps") or 1000)

    def scaled_rows(self, steps: Tensor, samples: Tensor) -> Tensor:
        """The network's inputs for `samples` [R, B, ..] before the steps of numbers `steps` [R, B]."""
        if self._scales is False:
            return samples
        scaled = samples.clone()
        for step in sorted(set(steps.flatten().tolist())):
            chosen = (steps == step).to(samples.device)
            scaled[chosen] = self.scaled(step, samples[chosen])
        return scaled

    def gain(self, index: int) -> tuple[float, float]:
        """By how much the next sample moves with the sample and with the output in step `index`."""
        self.reach(index)
        sample, output = self._like
        after = {number: state for number, state in self._states.items() if number > index}
        results = [
            next_sample(self.step(index, *moved)).double()
            for moved in ((sample, output), (2 * sample, output), (sample, 2 * output))
        ]
        self._like = sample, output
        self._states.update(after)
        visible = output[:, : sample.shape[1]].double()
        return tuple(  # type: ignore[return-value]
            float(((moved - results[0]) * of).sum() / of.square().sum().clamp(min=1e-30))
            for moved, of in zip(results[1:], (sample.double(), visible), strict=True)
        )

    def scaled(self, index: int, sample: Tensor) -> Tensor:
        """The network's input for `sample` before step `index`."""
        self.reach(index)
        self._run.restore(self._states[index])
        scaled = self._run.scale_model_input(sample, self.timesteps[index])
        self._scales = scaled is not sample
        return scaled

    def reach(self, index: int) -> None:
        """Make the steps before step `index`, where they have not been; what a scheduler counts needs no values."""
        for ahead in range(max(self._states), index):
            self.step(ahead, *self._like)

    def forget(self, before: int) -> None:
        """Steps before number `before` are not made again."""
        for kept in (self._states, self._streams):
            for index in [index for index in kept if index < before]:
                del kept[index]


_UNKNOWN = Node(0.0, 1.0, 1.0)


class SchedulerTrajectory(SteppedTrajectory):
    """The samples of a stepper from number `start` on, `x` the sample there, `output` the one that made it."""

    def __init__(
        self, stepper: Stepper, start: int, end: int, x: Tensor, output: Tensor, nodes: Sequence[Node] | None
    ) -> None:
        super().__init__(x, nodes[start : end + 1] if nodes else [_UNKNOWN] * (end + 1 - start), output)
        self._stepper, self._start = stepper, start
        self.latest: Any = None  # what a step returned last, for its form

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """Not asked: the pipeline evaluates."""
        raise NotImplementedError

    def step(self, index: int, sample: Tensor, output: Tensor) -> Tensor:
        """The next sample by the scheduler's own step."""
        self.latest = self._stepper.step(self._start + index, sample, output)
        return next_sample(self.latest).to(sample.dtype)

    def gain(self, index: int) -> tuple[float, float]:
        """Found by moving the sample and the output of a step a little, and taking all of it back."""
        return self._stepper.gain(self._start + index)


def same_arguments(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two calls of `step` have the same other arguments: the same objects, or equal plain values."""

    def same(a: Any, b: Any) -> bool:
        if a is b:
            return True
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        return isinstance(a, (int, float, str)) and type(a) is type(b) and a == b

    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)


def next_sample(result: Any) -> Tensor:
    """The sample in what a scheduler's `step` returns."""
    sample: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return sample


def with_sample(result: Any, sample: Tensor) -> Any:
    """`result` of a scheduler's `step`, with `sample` in its place."""
    if isinstance(result, tuple):
        return (sample, *result[1:])
    changed = copy.copy(result)
    changed["prev_sample"] = sample
    return changed


def scheduler_nodes(scheduler: Any, timesteps: Sequence[Tensor]) -> list[Node] | None:
    """The marginals at `timesteps` and at the end, by the scheduler's noise schedule; None if it is not understood.

    They set the unit of the tolerance and the first guess, not the result.
    """
    try:
        schedule = stateful(scheduler).schedule
        nodes = [schedule.node_of(float(t)) for t in timesteps]
        return [*nodes, schedule.node(schedule.clean_time)]
    except ValueError:
        return None
