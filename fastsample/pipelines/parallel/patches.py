"""What is changed on a pipeline's instances while it samples in parallel; its classes and its code stay."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.pipelines.parallel.driver import Loop, Settings
from fastsample.pipelines.parallel.layout import NotParallelError


class Patches:
    """What is changed on a pipeline's instances while it samples; all of it is undone on exit."""

    def __init__(self, pipe: Any, modules: list[nn.Module], settings: Settings) -> None:
        self._pipe, self._modules, self._settings = pipe, modules, settings
        self.loops: list[Loop] = []  # that steps were made in
        self._scheduler = pipe.scheduler
        self._loop: Loop | None = None
        self._bar: Any = None
        self._shared = 0  # rows of the call under way that the processes share
        self._undo = contextlib.ExitStack()
        self.swept = False  # whether a denoiser has been given many rows

    def __enter__(self) -> Patches:
        scheduler, pipe = self._scheduler, self._pipe
        for module in self._modules:
            handle = module.register_forward_pre_hook(self._expand, with_kwargs=True)
            self._undo.callback(handle.remove)
            if self._settings.shares is not None:
                self._undo.callback(module.register_forward_hook(self._collect).remove)
        self._patch(scheduler, "set_timesteps", self._set_timesteps(scheduler.set_timesteps))
        self._patch(scheduler, "step", self._step(scheduler.step))
        if hasattr(pipe, "progress_bar"):
            self._patch(pipe, "progress_bar", self._progress_bar(pipe.progress_bar))
        return self

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        timesteps = getattr(self._scheduler, "timesteps", None)
        if isinstance(timesteps, Tensor):
            self._scheduler.timesteps = timesteps.as_subclass(Tensor)

    def callbacks(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The call's arguments with callbacks that are called once a committed step."""
        given = kwargs.get("callback_on_step_end")
        return kwargs if given is None else {**kwargs, "callback_on_step_end": self._callback(given)}

    # --- patches -----------------------------------------------------------------------------------------

    def _patch(self, target: Any, name: str, value: Any) -> None:
        assert name not in vars(target), f"{type(target).__name__}.{name} is patched already"
        setattr(target, name, value)
        self._undo.callback(delattr, target, name)

    def _set_timesteps(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Lays out the timesteps as ever, as a tensor that is iterated over sweep by sweep."""

        def begin(timesteps: Tensor) -> Iterator[Tensor]:
            if self._loop is not None and self._loop.running:
                yield from timesteps.as_subclass(Tensor)
                return
            self._loop = Loop(self._scheduler, list(timesteps.as_subclass(Tensor)), self._settings)
            self.loops.append(self._loop)
            yield from self._loop

        kind = type("ParallelTimesteps", (Tensor,), {"__iter__": begin})

        @functools.wraps(original)
        def set_timesteps(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._scheduler.timesteps = self._scheduler.timesteps.as_subclass(kind)
            return result

        return set_timesteps

    def _step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._loop is None:
                raise NotParallelError(f"{type(self._pipe).__name__} does not iterate over its scheduler's timesteps")
            names = list(inspect.signature(original).parameters)[3:]
            before = self._loop.committed
            result = self._loop.step(
                model_output, timestep, sample, {**dict(zip(names, args, strict=False)), **kwargs}
            )
            if self._bar is not None:
                self._bar.advance(before, self._loop.committed, len(self._loop.timesteps))
            return result

        return step

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _expand(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._loop is None or not self._loop.offered:
            return None
        expanded = self._loop.call(module, args, kwargs)
        if expanded is None:
            return None
        call, rows = expanded
        self.swept = True
        if self._settings.shares is not None:
            call = self._settings.shares.take(call, rows)
            self._shared = rows
        return (), call

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _collect(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The outputs of all processes' rows, where the call was shared."""
        rows, self._shared = self._shared, 0
        return self._settings.shares.gather(output, rows) if self._settings.shares and rows else output

    def _progress_bar(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def progress_bar(iterable: Any = None, total: int | None = None) -> Any:
            if iterable is not None:
                self._bar = _Bar(original(total=len(iterable)), 1)
                return self._bar.over(iterable)
            self._bar = _Bar(original(total=total), getattr(self._scheduler, "order", 1))
            return self._bar

        return progress_bar

    def _callback(self, given: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(given)
        def callback(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            loop = self._loop
            last: dict[str, Any] = {}
            assert loop is not None
            for step, latents in sorted(loop.unreported.items()):
                shown = {**tensors, "latents": latents} if "latents" in tensors else dict(tensors)
                versions = {name: value._version for name, value in shown.items() if isinstance(value, Tensor)}
                last = given(pipe, step, loop.timesteps[step], dict(shown)) or {}
                for name, value in shown.items():
                    returned = last.get(name, value)
                    if returned is not value or (name in versions and value._version != versions[name]):
                        raise NotParallelError(f"the callback changes {name}")
                if getattr(pipe, "interrupt", False):
                    last = {**last, "latents": latents} if "latents" in tensors else last
                    break
            loop.unreported.clear()
            return last

        return callback


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
