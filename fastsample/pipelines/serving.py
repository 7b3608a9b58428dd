"""A pipeline's guided denoiser as a function: rows of samples at times of their own in, the guided outputs out.

The pipeline's own loop makes them, in a thread of its own: it keeps its prompt encoding and its guidance, and goes
round once a request. What bears many rows at once is what sampling in parallel rests on, with the same checks.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastsample.pipelines.apart import apart
from fastsample.pipelines.denoisers import inner
from fastsample.pipelines.guidance.cut import CUT
from fastsample.pipelines.layers import layers_on
from fastsample.pipelines.overlay import class_beneath, overlaid
from fastsample.pipelines.parallel.conversion import TimestepConversion
from fastsample.pipelines.parallel.distributed import RowShares, process_state
from fastsample.pipelines.parallel.driver import Loop, Phase
from fastsample.pipelines.parallel.layout import Call, CallLayout, NotParallelError, bind
from fastsample.pipelines.parallel.loop import step_decision
from fastsample.pipelines.parallel.pipeline import stepped_denoisers
from fastsample.pipelines.parallel.rounding import allowed_difference
from fastsample.pipelines.parallel.segment import Settings
from fastsample.pipelines.parallel.session import Session
from fastsample.pipelines.parallel.stepping import with_sample


class Finished(Exception):  # noqa: N818  not an error
    """Ends a pipeline's call of which nothing more is asked."""


@dataclass
class Request:
    """Samples [R, B, ..] with row r at the timestep `times[r]`."""

    samples: Tensor
    times: Tensor


@dataclass
class Exchange:
    """What the caller's thread and the pipeline's hand to each other. An exception takes the place of an answer."""

    asked: queue.SimpleQueue[Request | None] = field(default_factory=queue.SimpleQueue)
    answered: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)


@dataclass
class Requests(Loop):
    """A pipeline's loop that goes round once a request, after a plain pass that shows its samples and its calls."""

    exchange: Exchange = field(default_factory=Exchange)
    dtype: torch.dtype = torch.float32  # of the timesteps that the loop is given
    _request: Request | None = None
    _layouts: list[CallLayout] = field(default_factory=list)
    _result: Any = None

    def __iter__(self) -> Iterator[Tensor]:
        yield self.timesteps[0].to(self.dtype)
        if self.phase is Phase.PLAIN:  # it wants to know them all
            self._enter(Phase.LISTED)
            yield from self.timesteps[1:]
            return
        while True:
            self._request = self.exchange.asked.get()
            if self._request is None:
                raise Finished
            self._enter(Phase.SWEEPING)
            yield self._request.times[0].to(self.timesteps[0].device)

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        module = inner(module)
        call, number = bind(module, args, kwargs), len(self._calls)
        self._calls.append((module, call))
        if self._request is None:
            return None
        if number >= len(self._layouts) or self._layouts[number].module is not module:
            raise NotParallelError("the denoisers called change with the timestep")
        layout = self._layouts[number]
        assert self._sample is not None
        layout.check_latents(call, self._sample)
        layout.check_timestep(call, self._request.times[0])
        layout.check_rest(call)
        samples = self._request.samples
        times = self._request.times[:, None].expand(samples.shape[:2])
        return layout.expand(call, samples, times)

    def step(self, output: Tensor, timestep: Any, sample: Tensor, arguments: dict[str, Any]) -> Any:
        calls, self._calls = self._calls, []
        if self._request is None:
            self._learn(calls, sample)
            step = class_beneath(self.scheduler).step  # type: ignore[attr-defined]
            self._result, self._sample = step(self.scheduler, output, timestep, sample, **arguments), sample
            if self.settings.shares is not None:
                self.settings.shares.check_agreement([sample])
                output = self.settings.shares.broadcast(output)
            first = float(self.timesteps[0])
            self.exchange.answered.put((sample, output[:, : sample.shape[1]], first))
        else:
            rows, items = self._request.samples.shape[:2]
            if len(output) != rows * items:
                raise NotParallelError(f"{rows} rows of {items} images became {len(output)} guided outputs")
            self.exchange.answered.put(output.reshape(rows, items, *output.shape[1:])[:, :, : sample.shape[1]])
        self._enter(Phase.STEPPED)
        return with_sample(self._result, sample)

    def _learn(self, calls: list[tuple[nn.Module, Call]], sample: Tensor) -> None:
        steps = float(self.scheduler.config.get("num_train_timesteps") or 1000)
        self._layouts = [CallLayout.learn(module, call, sample, TimestepConversion(steps)) for module, call in calls]
        if not self._layouts:
            raise NotParallelError("the pipeline steps without a call of a denoiser that has a timestep")
        for layout in self._layouts:
            layout.check_timestep(layout.call, self.timesteps[0].to(self.dtype))


class Served:
    """`served(samples, times)`: guided outputs for samples [R, B, ..] with row r at `times[r]`; see :func:`serve`.

    `sample` and `output` are the pipeline's own first latents [B, ..] and the output there; `time` its timestep.
    `evaluations` counts rows times images, each guided evaluation once.
    """

    def __init__(self, pipe: Any, scheduler: Any, call: Mapping[str, Any], rows: int, *, whole: bool) -> None:
        self.evaluations = 0
        self._rows, self._dtype = rows, torch.int64 if whole else torch.float32
        self._exchange, self._checked = Exchange(), False
        self._thread = threading.Thread(target=self._work, args=(pipe, scheduler, dict(call)), daemon=True)
        self._cuda = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._thread.start()
        self.sample: Tensor
        self.output: Tensor
        self.time: float
        try:
            self.sample, self.output, self.time = self._answer()
        except BaseException:  # an interrupt, say, with the pipeline still at work
            self.close()
            raise
        self.evaluations += len(self.sample)

    def __call__(self, samples: Tensor, times: Sequence[float]) -> Tensor:
        outputs = []
        for begin in range(0, len(samples), self._rows):
            outputs.append(self._ask(samples[begin : begin + self._rows], times[begin : begin + self._rows]))
        return torch.cat(outputs)

    def close(self) -> None:
        """End the pipeline's call."""
        self._exchange.asked.put(None)
        self._thread.join()

    def _ask(self, samples: Tensor, times: Sequence[float]) -> Tensor:
        given = list(times)
        checked, self._checked = self._checked, True
        if not checked:  # the first pass again, beside other rows
            samples, given = torch.cat([self.sample[None].to(samples), samples]), [self.time, *given]
        told = torch.tensor(given, dtype=torch.float64).to(self._dtype)
        self._exchange.asked.put(Request(samples.to(self.sample), told))
        output: Tensor = self._answer()
        self.evaluations += samples.shape[0] * samples.shape[1]
        if not checked:
            _check(output[0], self.output)
            output = output[1:]
        return output

    def _answer(self) -> Any:
        if not self._thread.is_alive() and self._exchange.answered.empty():
            raise ValueError("the pipeline's call has ended: open another block of serve(..)")
        answer = self._exchange.answered.get()
        if isinstance(answer, NotParallelError):
            raise ValueError(f"pipe cannot be asked for rows of samples: {answer}") from answer
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _work(self, pipe: Any, scheduler: Any, call: dict[str, Any]) -> None:
        """The pipeline's call, in the thread of its own, where alone its scheduler is another."""
        try:
            if self._cuda is not None:
                torch.cuda.set_device(self._cuda)
            with apart(pipe, scheduler) as own:
                session = Session(own, stepped_denoisers(pipe), _settings(), self._loop)
                with session, overlaid(own, progress_bar=_no_bar):
                    pipe(**call)
            self._exchange.answered.put(NotParallelError("its loop does not go round over the scheduler's timesteps"))
        except Finished:
            if hasattr(pipe, "maybe_free_model_hooks"):
                pipe.maybe_free_model_hooks()
        except BaseException as error:  # raised again where the answer is waited for
            self._exchange.answered.put(error)

    def _loop(self, scheduler: Any, timesteps: list[Tensor], settings: Settings) -> Requests:
        return Requests(scheduler, timesteps, settings, exchange=self._exchange, dtype=self._dtype)


@contextlib.contextmanager
def serve(
    pipe: Any, scheduler: Any, call: Mapping[str, Any], *, rows: int = 64, whole: bool = False
) -> Iterator[Served]:
    """The guided denoiser of `pipe(**call)` as a function, until the end of the block.

    `scheduler`, of VP or flow-matching models, says where the call begins; `rows` are the most that are evaluated at
    once, `whole` gives the network whole timesteps only. In processes that torchrun or accelerate launch started,
    each evaluates its share of the rows. In other threads, this one too, `pipe` is what it was.
    Raises ValueError where the pipeline's loop does more than step, or mixes rows.
    """
    check_servable(pipe, call)
    served = Served(pipe, scheduler, call, rows, whole=whole)
    try:
        yield served
    finally:
        served.close()


def check_servable(pipe: Any, call: Mapping[str, Any]) -> None:
    """Raise ValueError where the loop of `pipe(**call)` does more than step, or its denoisers keep caches."""
    for denoiser in stepped_denoisers(pipe):
        if any(layer.name == CUT for layer in layers_on(denoiser)):
            raise ValueError(f"the guidance of pipe.{denoiser.name} is cut at some steps: remove() the guidance cut")
    decision = step_decision(class_beneath(pipe), call)
    if decision:
        raise ValueError(f"pipe = {type(pipe).__name__} cannot be asked for rows of samples: {decision}")
    if getattr(pipe.config, "boundary_ratio", None) is not None:
        raise ValueError(f"pipe = {type(pipe).__name__} has a second denoiser for low noise: its rows would be mixed")


def _settings() -> Settings:
    """Of a loop without windows; the processes of a launcher share the rows."""
    shares = RowShares() if process_state() is not None else None
    return Settings("picard", None, 0.0, lambda timesteps: [], False, lambda: False, shares)


def _no_bar(beneath: Any, iterable: Any = None, total: int | None = None) -> Any:
    """In place of a pipeline's progress bar."""
    del beneath
    return tqdm(iterable, total=total, disable=True)


def _check(again: Tensor, alone: Tensor) -> None:
    """ValueError unless the first pass, evaluated again beside others, is what it was, to rounding."""
    size = max(float(alone.double().square().mean().sqrt()), 1e-30)
    difference = float((again.double() - alone.double()).square().mean().sqrt()) / size
    if not difference <= allowed_difference(alone):
        raise ValueError(f"pipe cannot be asked for rows of samples: one evaluated again differs by {difference:.1e}")
