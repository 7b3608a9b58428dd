"""Any diffusers pipeline, sampled in parallel over its steps, without a copy of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.caching.targets import check_caches, inner
from fastsample.parallel.driver import Loop, Settings
from fastsample.parallel.iterations import ParallelReport, check_tolerance, check_window
from fastsample.parallel.layout import NotParallelError, timestep_argument
from fastsample.parallel.loop import step_decision
from fastsample.parallel.updates import make_update
from fastsample.sampling.hooked import hooks_of


@dataclass
class ParallelRun:
    """What the calls of a parallel pipeline cost, summed.

    `rounds` are the denoiser evaluations made one after the other: `plain_steps` of one row, and sweeps of a window.
    `steps` are what a sequential call would have made. `fallback` is why the last call was made sequentially, or "".
    """

    steps: int = 0
    plain_steps: int = 0
    reports: list[ParallelReport] = field(default_factory=list)
    fallback: str = ""

    @property
    def sweeps(self) -> int:
        """Sweeps over windows of steps."""
        return sum(report.sweeps for report in self.reports)

    @property
    def rounds(self) -> int:
        """Evaluations one after the other."""
        return self.plain_steps + self.sweeps


class ParallelSampler:
    """`ParallelSampler(pipe)(..)` samples as `pipe(..)`, many steps at a time: more arithmetic, fewer rounds.

    `iteration` is "picard", "replay", "secant" or "anderson"; `window` how many steps are evaluated at once (None:
    all); at `tolerance` 0 the result equals the sequential one to rounding, else a sample is final once the earlier
    ones moved, RMS, by no more than `tolerance` times the noise of a DDPM step there. `run` says what the last call
    cost. See :func:`parallelise` for what is checked.

    Raises ValueError for wrong arguments, and where a feature cache (T-GATE too), a guider that acts on some steps
    only, or a missing scheduler or denoiser forbids it, before any evaluation.
    """

    def __init__(
        self, pipe: Any, *, iteration: str = "secant", window: int | None = 16, tolerance: float = 1e-2
    ) -> None:
        make_update(iteration)
        check_window(window)
        check_tolerance(tolerance)
        denoisers(pipe)
        self.pipe, self.iteration, self.window, self.tolerance = pipe, iteration, window, tolerance
        self.run = ParallelRun()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `pipe(*args, **kwargs)` returns."""
        with parallelise(
            self.pipe, iteration=self.iteration, window=self.window, tolerance=self.tolerance
        ) as self.run:
            return self.pipe(*args, **kwargs)


@contextlib.contextmanager
def parallelise(
    pipe: Any, *, iteration: str = "secant", window: int | None = 16, tolerance: float = 1e-2
) -> Iterator[ParallelRun]:
    """Calls of `pipe` in the block sample many steps at a time; arguments and errors as :class:`ParallelSampler`.

    The pipeline's code runs unchanged, once a sweep instead of once a step. It is refused, and the call made again
    sequentially with one warning that says why (`fallback` in the run, too), when its loop decides by the step,
    changes the latents between steps, or gives its denoiser anything but latents and timestep that changes; and when
    a row evaluated among others differs from the same row alone. The generators are put back before.
    """
    make_update(iteration)
    check_window(window)
    check_tolerance(tolerance)
    denoisers(pipe)
    run = ParallelRun()
    original = type(pipe)

    @functools.wraps(original.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _call(self, original, run, iteration, window, tolerance, args, kwargs)

    pipe.__class__ = type(original.__name__, (original,), {"__call__": call, "__module__": original.__module__})
    try:
        yield run
    finally:
        pipe.__class__ = original


def denoisers(pipe: Any) -> list[nn.Module]:
    """The components that are called with a timestep; ValueError where sampling in parallel makes no sense."""
    components = getattr(pipe, "components", {})
    if not hasattr(components.get("scheduler"), "step"):
        raise ValueError(f"pipe = {type(pipe).__name__} has no scheduler whose steps could be made in parallel")
    found = {
        name: part
        for name, part in components.items()
        if isinstance(part, nn.Module) and timestep_argument(inner(part))
    }
    if not found:
        raise ValueError(f"pipe = {type(pipe).__name__} has no component that is called with a timestep")
    for name, module in found.items():
        check_caches(name, module)
        hooks = {hook for part in inner(module).modules() for hook in hooks_of(part)}
        if any("tgate" in hook for hook in hooks):
            raise ValueError(f"pipe.{name} has T-GATE, which counts the steps of a sequential run: remove() it first")
    guider = components.get("guider")
    if guider is not None and (getattr(guider, "_start", 0.0), getattr(guider, "_stop", 1.0)) != (0.0, 1.0):
        raise ValueError(f"pipe.guider = {type(guider).__name__} acts on some steps only: use start=0.0, stop=1.0")
    return list(found.values())


def _call(
    pipe: Any,
    original: type,
    run: ParallelRun,
    iteration: str,
    window: int | None,
    tolerance: float,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The pipeline's call in parallel, and where that cannot be, as it is."""
    modules = denoisers(pipe)
    arguments = inspect.signature(original.__call__).bind(pipe, *args, **kwargs).arguments  # type: ignore[operator]
    streams = _Streams(arguments.get("generator"))
    try:
        reason = step_decision(original, {**arguments, **arguments.get("kwargs", {})})
        if reason:
            raise NotParallelError(reason)
        settings = Settings(
            iteration,
            window,
            tolerance,
            cuts=lambda timesteps: _expert_boundary(pipe, timesteps),
            constant_rows=any(inner(module) is not module or module._compiled_call_impl for module in modules),
            interrupted=lambda: bool(getattr(pipe, "interrupt", False)),
        )
        with _Patches(pipe, modules, settings, run) as patches:
            return original.__call__(pipe, *args, **patches.callbacks(kwargs))  # type: ignore[operator]
    except NotParallelError as error:
        run.fallback = str(error)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not patches.swept:
            raise
        run.fallback = f"{original.__name__} failed with many rows at once: {type(error).__name__}: {error}"
    warnings.warn(f"sampled sequentially: {run.fallback}", stacklevel=4)
    streams.restore()
    return original.__call__(pipe, *args, **kwargs)  # type: ignore[operator]


class _Patches:
    """What is changed on a pipeline's instances while it samples; all of it is undone on exit."""

    def __init__(self, pipe: Any, modules: list[nn.Module], settings: Settings, run: ParallelRun) -> None:
        self._pipe, self._modules, self._settings, self._run = pipe, modules, settings, run
        self._scheduler = pipe.scheduler
        self._loop: Loop | None = None
        self._bar: Any = None
        self._undo = contextlib.ExitStack()
        self.swept = False  # whether a denoiser has been given many rows

    def __enter__(self) -> _Patches:
        scheduler, pipe = self._scheduler, self._pipe
        for module in self._modules:
            handle = module.register_forward_pre_hook(self._expand, with_kwargs=True)
            self._undo.callback(handle.remove)
        self._patch(scheduler, "set_timesteps", self._set_timesteps(scheduler.set_timesteps))
        self._patch(scheduler, "step", self._step(scheduler.step))
        if hasattr(pipe, "progress_bar"):
            self._patch(pipe, "progress_bar", self._progress_bar(pipe.progress_bar))
        return self

    def __exit__(self, *error: Any) -> None:
        self._account()
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
            self._account()
            values = list(timesteps.as_subclass(Tensor))
            self._loop = Loop(self._scheduler, values, self._settings)
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
        call = self._loop.call(module, args, kwargs)
        if call is None:
            return None
        self.swept = True
        return (), call

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

    def _account(self) -> None:
        """Add what the loop did to the run."""
        loop = self._loop
        if loop is not None and loop.passes:
            self._run.steps += loop.committed
            self._run.plain_steps += loop.plain_steps
            self._run.reports += loop.reports
        self._loop = None


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


class _Streams:
    """The states of the generators that a call may draw from, the default ones too."""

    def __init__(self, given: Any) -> None:
        generators = given if isinstance(given, list) else [given]
        self._own = [(g, g.get_state()) for g in generators if isinstance(g, torch.Generator)]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def restore(self) -> None:
        """Put them back."""
        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def _expert_boundary(pipe: Any, timesteps: list[Tensor]) -> list[int]:
    """The first step of a second denoiser (Wan 2.2), which takes over below a part of the trained timesteps."""
    ratio = getattr(pipe.config, "boundary_ratio", None)
    if ratio is None:
        return []
    boundary = ratio * pipe.scheduler.config.num_train_timesteps
    first = next((index for index, timestep in enumerate(timesteps) if timestep < boundary), 0)
    return [first] if first else []
