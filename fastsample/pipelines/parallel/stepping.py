"""A pipeline's own scheduler as a trajectory: by its table where it has one, else by its real `step`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsample.fixed_point.linear import TableTrajectory
from fastsample.fixed_point.trajectory import SteppedTrajectory
from fastsample.pipelines.overlay import class_beneath
from fastsample.pipelines.parallel.streams import Drawn, Streams
from fastsample.pipelines.stateful import Remaining, stateful
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
        self._finds = self._run is scheduler  # whether a step is found by its timestep, wherever the scheduler is
        self._scales: bool | None = None  # whether the network's input is another tensor than the sample
        self._states: dict[int, Any] = {0: self._run.state()}
        self._streams: dict[int, Drawn] = {0: self._generators.state()}

    def go_to(self, index: int) -> None:
        """Put the scheduler where step `index` comes next; steps before were made at least once."""
        self._run.restore(self._states[index])
        if self._draws:
            self._generators.restore(self._streams[max(step for step in self._streams if step <= index)])

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

    def remaining(self, index: int, sample: Tensor) -> Remaining | None:
        """The steps from number `index` on, where `sample` is reached, as a table; None where they are no table's.

        Step `index - 1` has just been made.
        """
        kind = class_beneath(self.scheduler)
        owners = [next((own for own in kind.__mro__ if name in vars(own)), None) for name in ("step", "remaining")]
        if owners[0] is not owners[1]:  # its own step may be another than the table's
            return None
        remaining: Remaining | None = self.scheduler.remaining(sample, **self.arguments)
        times = torch.stack(list(self.timesteps[index:])).tolist()
        return remaining if remaining and list(remaining.times[: len(times)]) == times else None

    def drawn(self, index: int, draw: Callable[[], Tensor]) -> Tensor:
        """The noise of step `index`, that `draw()` draws from where the steps before left the generators."""
        self._generators.restore(self._streams[max(self._streams)])
        self._draws = True
        noise = draw()
        self._streams[index + 1] = self._generators.state()
        return noise

    def reach(self, index: int, state: Any) -> None:
        """Take `state` for what the scheduler holds where step `index` comes next."""
        self._states[index] = state

    @property
    def draws_from_all(self) -> bool:
        """Whether steps have drawn from PyTorch's own streams, which are of all threads."""
        return self._draws and self._generators.shared

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
        self.walk(index)
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
        if not self._finds:
            self.walk(index)
            self._run.restore(self._states[index])
        scaled = self._run.scale_model_input(sample, self.timesteps[index])
        self._scales = scaled is not sample
        return scaled

    def walk(self, index: int) -> None:
        """Make the steps before step `index`, where they have not been; what a scheduler counts needs no values."""
        for ahead in range(max(self._states), index):
            self.step(ahead, *self._like)

    def forget(self, before: int) -> None:
        """Steps before number `before` are not made again."""
        drawn = max((step for step in self._streams if step <= before), default=before)
        for kept, first in ((self._states, before), (self._streams, drawn)):
            for index in [index for index in kept if index < first]:
                del kept[index]


_UNKNOWN = Node(0.0, 1.0, 1.0)


class RemainingTrajectory(TableTrajectory):
    """The samples of the scheduler's table from number `start` on; the arguments are :class:`SchedulerTrajectory`'s.

    The scheduler is put where the steps made for all batch items have come, as if it had made them.
    """

    def __init__(
        self,
        stepper: Stepper,
        remaining: Remaining,
        start: int,
        x: Tensor,
        output: Tensor,
        nodes: Sequence[Node],
        made: Any,
    ) -> None:
        self._stepper, self._remaining, self._start, self._made = stepper, remaining, start, made
        super().__init__(
            remaining.table,
            x,
            nodes,
            self._noise_of,
            begin=remaining.begin,
            stored=(*remaining.stored, remaining.prediction),
            output=output[:, : x.shape[1]],
            sums=remaining.data,
        )
        self.result(0, x)

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """Not asked: the pipeline evaluates."""
        raise NotImplementedError

    def result(self, begin: int, sample: Tensor) -> Any:
        """What the scheduler's step returns that reaches state `begin`, `sample`; it can go on from there."""
        stored = [self._stored[slot] for slot in range(len(self._stored))]
        data = stored.pop().to(sample.dtype)
        state = self._remaining.after(self._remaining.begin + begin, tuple(stored), sample, data)
        self._stepper.reach(self._start + begin, state)
        return with_sample(self._made, sample, data)

    def _noise_of(self, index: int) -> Tensor:
        step = self._start + index - self._remaining.begin
        return self._stepper.drawn(step, lambda: self._remaining.noise(index))


class SchedulerTrajectory(SteppedTrajectory):
    """The samples of a stepper from number `start` on, `x` the sample there, `output` the one that made it."""

    def __init__(
        self, stepper: Stepper, start: int, end: int, x: Tensor, output: Tensor, nodes: Sequence[Node] | None
    ) -> None:
        super().__init__(x, nodes[start : end + 1] if nodes else [_UNKNOWN] * (end + 1 - start), output)
        self._stepper, self._start = stepper, start
        self._latest: Any = None  # what a step returned last, for its form

    def evaluate(self, rows: Tensor, states: Tensor) -> Tensor:
        """Not asked: the pipeline evaluates."""
        raise NotImplementedError

    def step(self, index: int, sample: Tensor, output: Tensor) -> Tensor:
        """The next sample by the scheduler's own step."""
        self._latest = self._stepper.step(self._start + index, sample, output)
        return next_sample(self._latest).to(sample.dtype)

    def result(self, begin: int, sample: Tensor) -> Any:
        """What the scheduler's step returns that reaches state `begin`, `sample`."""
        self._stepper.walk(self._start + begin)  # a bound of rounds goes past what was stepped through
        return with_sample(self._latest, sample)

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


def with_sample(result: Any, sample: Tensor, data: Tensor | None = None) -> Any:
    """`result` of a scheduler's `step` with `sample` in its place, and `data` in that of a data prediction."""
    if isinstance(result, tuple):
        return (sample, *(result[1:] if data is None else [data] * len(result[1:])))
    changed = copy.copy(result)
    changed["prev_sample"] = sample
    if data is not None and "pred_original_sample" in changed:
        changed["pred_original_sample"] = data
    return changed


def scheduler_nodes(scheduler: Any, timesteps: Sequence[Tensor]) -> list[Node] | None:
    """The marginals at `timesteps` and at the end, by the scheduler's noise schedule; None if it is not understood.

    They set the unit of the tolerance and the first guess, not the result.
    """
    try:
        schedule = stateful(scheduler).schedule
        nodes = [schedule.node_of(float(t)) for t in torch.stack(list(timesteps)).tolist()]
        return [*nodes, schedule.node(schedule.clean_time)]
    except ValueError:
        return None
