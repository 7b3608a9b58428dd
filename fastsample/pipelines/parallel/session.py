"""One call of a pipeline, its loop driven by sweeps: what is put in the way of its scheduler and its denoisers."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from fastsample.pipelines.denoisers import Denoiser, latents_of
from fastsample.pipelines.guidance.steps import evaluating
from fastsample.pipelines.layers import CHANGED, SHARED, Layer, layered
from fastsample.pipelines.overlay import Attribute, overlaid
from fastsample.pipelines.parallel.callbacks import once_a_step
from fastsample.pipelines.parallel.consistency import Twin
from fastsample.pipelines.parallel.driver import Loop, Phase
from fastsample.pipelines.parallel.layout import NotParallelError
from fastsample.pipelines.parallel.segment import Settings


class Session:
    """A context in which a call of `pipe` is driven, in this thread alone; all of it is undone on exit."""

    def __init__(
        self,
        pipe: Any,
        denoisers: list[Denoiser],
        settings: Settings,
        make_loop: Callable[[Any, list[Tensor], Settings], Loop] = Loop,
    ) -> None:
        self._pipe, self._denoisers, self._settings, self._make_loop = pipe, denoisers, settings, make_loop
        self.loops: list[Loop] = []  # that steps were made in
        self.swept = False  # whether a denoiser has been given many rows
        self.failure: Exception | None = None  # what the callback raised
        self._scheduler = pipe.scheduler
        self._loop: Loop | None = None
        self._bar: _Bar | None = None
        self._thread = threading.current_thread()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Session:
        # the loop is given the timesteps of windows, and what it hands to `step` moves windows
        timesteps = Attribute(lambda own: own.as_subclass(self._kind) if isinstance(own, Tensor) else own)
        with contextlib.ExitStack() as undo:
            undo.enter_context(overlaid(self._scheduler, step=self._step, timesteps=timesteps))
            if isinstance(self._pipe, DiffusionPipeline):  # modular ones have no bar
                undo.enter_context(overlaid(self._pipe, progress_bar=self._progress_bar))
            for denoiser in self._denoisers:
                module = denoiser.component
                undo.enter_context(layered(module, Layer("parallel", functools.partial(self._evaluate, module))))
                if self._settings.consistency is not None:
                    changed = functools.partial(self._change, Twin(denoiser.module, self._settings.consistency))
                    undo.enter_context(layered(module, Layer("consistency", changed, depth=CHANGED)))
                if self._settings.shares is not None:
                    undo.enter_context(layered(module, Layer("shares", self._share, depth=SHARED)))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()

    def callbacks(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's arguments with callbacks that are called once a committed step."""
        given = kwargs.get("callback_on_step_end")
        if given is None:
            return kwargs
        self._settings = replace(self._settings, reporting=True)
        callback = once_a_step(given, self._running, self._pipe, self._denoisers)

        @functools.wraps(given)
        def called(*args: Any) -> dict[str, Any]:
            try:
                return callback(*args)
            except Exception as error:
                self.failure = error
                raise

        return {**kwargs, "callback_on_step_end": called}

    def _running(self) -> Loop:
        assert self._loop is not None
        return self._loop

    # --- what takes the place of the scheduler's and the pipeline's --------------------------------------

    @functools.cached_property
    def _kind(self) -> type[Tensor]:
        """A class of timesteps that this thread's loop iterates over sweep by sweep."""

        def begin(timesteps: Tensor) -> Iterator[Tensor]:
            plain = timesteps.as_subclass(Tensor)
            if threading.current_thread() is not self._thread or (self._loop is not None and self._loop.running):
                yield from plain
                return
            around, loop = self._loop, self._make_loop(self._scheduler, list(plain), self._settings)
            self._loop = loop
            self.loops.append(loop)
            yield from loop
            if loop.phase is Phase.LISTED:  # it was no sampling loop, perhaps within one
                self._loop = around

        return type("ParallelTimesteps", (Tensor,), {"__iter__": begin})

    def _step(
        self,
        beneath: Callable[..., Any],
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self._loop is None:
            raise NotParallelError(f"{type(self._pipe).__name__} does not iterate over its scheduler's timesteps")
        names = list(inspect.signature(beneath).parameters)[3:] if args else []
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        before = self._loop.committed
        result = self._loop.step(model_output, timestep, sample, arguments)
        if self._bar is not None:
            self._bar.advance(before, self._loop.committed, len(self._loop.timesteps))
        return result

    def _progress_bar(self, beneath: Callable[..., Any], iterable: Any = None, total: int | None = None) -> Any:
        if iterable is not None:
            self._bar = _Bar(beneath(total=len(iterable)), 1)
            return self._bar.over(iterable)
        self._bar = _Bar(beneath(total=total), getattr(self._scheduler, "order", 1))
        return self._bar

    # --- layers around the denoisers -----------------------------------------------------------------------------

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def _evaluate(self, module: torch.nn.Module, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a call of a denoiser, one for the rows of a sweep."""
        loop = self._loop
        if threading.current_thread() is not self._thread or loop is None or not loop.stepping:
            return beneath(*args, **kwargs)
        expanded = loop.call(module, args, kwargs)
        with evaluating(loop.timesteps, loop.places):
            if expanded is None:
                return beneath(*args, **kwargs)
            self.swept = True
            return beneath(**expanded)

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def _change(self, twin: Twin, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a sweep's call in which the consistency model has a share, that of the changed network."""
        loop = self._loop
        if threading.current_thread() is not self._thread or loop is None or not loop.share:
            return beneath(*args, **kwargs)
        return twin.at(loop.share)(*args, **kwargs)

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def _share(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a sweep's call, one for this process' rows; the outputs of all processes' rows."""
        shares, loop = self._settings.shares, self._loop
        mine = threading.current_thread() is self._thread
        if not mine or loop is None or not loop.sweeping or shares is None:
            return beneath(*args, **kwargs)
        rows = len(latents_of(args, kwargs))
        return shares.gather(beneath(**shares.take(kwargs, rows)), rows)  # a sweep's call has names alone


class _Bar:
    """A progress bar that counts committed steps, whatever the pipeline's loop says."""

    def __init__(self, bar: Any, order: int) -> None:
        self._bar, self._order = bar, order

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def update(self, count: int = 1) -> None:
        """Called by the pipeline once a sweep: not counted."""

    def advance(self, before: int, after: int, steps: int) -> None:
        """Count what was committed of `steps` as pipelines do: `order` of them are one, warm-up steps are none."""

        def done(committed: int) -> int:
            if self._bar.total is None or committed == steps:
                return int(self._bar.total or committed)
            warmup = max(0, steps - self._bar.total * self._order)
            return int(max(0, committed - warmup) // self._order)

        self._bar.update(done(after) - done(before))

    def over(self, iterable: Any) -> Iterator[Any]:
        """`iterable` under the bar."""
        with self:
            yield from iterable
