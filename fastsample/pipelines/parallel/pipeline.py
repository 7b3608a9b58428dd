"""Any diffusers pipeline, sampled in parallel over its steps, without a copy of it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fastsample.fixed_point.coarse import Strides
from fastsample.fixed_point.iterations import FixedPoint, ParallelReport
from fastsample.pipelines.apart import apart
from fastsample.pipelines.denoisers import Denoiser, check_caches, denoisers
from fastsample.pipelines.layers import GATE, layers_on
from fastsample.pipelines.overlay import class_beneath, overlaid
from fastsample.pipelines.parallel.consistency import Consistency
from fastsample.pipelines.parallel.distributed import RowShares
from fastsample.pipelines.parallel.driver import Loop
from fastsample.pipelines.parallel.guiders import check_guider
from fastsample.pipelines.parallel.layout import NotParallelError
from fastsample.pipelines.parallel.loop import step_decision
from fastsample.pipelines.parallel.segment import Settings
from fastsample.pipelines.parallel.session import Session
from fastsample.pipelines.parallel.streams import Streams


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

    def add(self, loops: list[Loop]) -> None:
        """Count what a call's loops did."""
        for loop in loops:
            self.steps += loop.committed
            self.plain_steps += loop.plain_steps
            self.reports += loop.reports

    @property
    def sweeps(self) -> int:
        """Sweeps over windows of steps."""
        return sum(report.sweeps for report in self.reports)

    @property
    def rounds(self) -> int:
        """Evaluations one after the other."""
        return self.plain_steps + self.sweeps

    @property
    def stopped(self) -> bool:
        """Whether a bound of rounds ended a call before all had settled: its image is the last guess."""
        return any(report.stopped for report in self.reports)


class ParallelSampler:
    """`ParallelSampler(pipe)(..)` samples as `pipe(..)`, many steps at a time: more arithmetic, fewer rounds.

    `iteration` is "picard", "replay", "secant" or "anderson"; `window` how many steps are evaluated at once (None:
    all); at `tolerance` 0 the result equals the sequential one to rounding, else a sample is final once the earlier
    ones moved, RMS, by no more than `tolerance` times the noise of a DDPM step there. `strides` are those of the
    first sweeps, which evaluate some rows and interpolate between: "auto", "none" or as (6, 6, 3, 3, 2). `run` says
    what the last call cost. See :func:`parallelise` for what is checked. With `distributed`, in processes that
    torchrun or accelerate launch started, each evaluates its share of the rows, and all return the same. `on_sweep`
    is called after each sweep with the iteration, whose `trajectory` holds the samples after the first step.

    `rounds` end a call, plain step and sweeps, with the samples as they are guessed by then (`run.stopped`): an image
    in 2 to 4 rounds that is near the sequential one. `consistency` makes them nearer: a Picard consistency model (So
    et al. 2025, arXiv:2503.19731) of the pipeline's denoiser, trained by `scripts/train_picard.py`, as its folder,
    its tensors by name, or a whole model. Its share in the weights falls from 1 to 0 over the first
    `consistency_sweeps` (None: as it was trained), which evaluate all rows and in which no sample is final; so the
    result at a tolerance is the denoiser's own, the sequential one at 0. It is for the guidance scale that it was
    trained with. The window "auto" is 16, and all steps with `rounds` or `consistency`.

    Raises ValueError for wrong arguments, and where a feature cache (T-GATE too), a guider that acts on some steps
    only, or a missing scheduler or denoiser forbids it, before any evaluation.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        iteration: str = "secant",
        window: int | Literal["auto"] | None = "auto",
        tolerance: float = 1e-2,
        strides: Strides = "auto",
        distributed: bool = False,
        on_sweep: Callable[[FixedPoint], None] | None = None,
        consistency: Any = None,
        consistency_sweeps: int | None = None,
        rounds: int | None = None,
    ) -> None:
        self.pipe = pipe
        self.options: dict[str, Any] = {
            "iteration": iteration,
            "window": window,
            "tolerance": tolerance,
            "strides": strides,
            "distributed": distributed,
            "on_sweep": on_sweep,
            "consistency": consistency,
            "consistency_sweeps": consistency_sweeps,
            "rounds": rounds,
        }
        self.run = ParallelRun()
        _settings(pipe, **self.options)  # wrong arguments are refused here

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `pipe(*args, **kwargs)` returns."""
        with parallelise(self.pipe, **self.options) as self.run:
            return self.pipe(*args, **kwargs)


@contextlib.contextmanager
def parallelise(
    pipe: Any,
    *,
    iteration: str = "secant",
    window: int | Literal["auto"] | None = "auto",
    tolerance: float = 1e-2,
    strides: Strides = "auto",
    distributed: bool = False,
    on_sweep: Callable[[FixedPoint], None] | None = None,
    consistency: Any = None,
    consistency_sweeps: int | None = None,
    rounds: int | None = None,
) -> Iterator[ParallelRun]:
    """Calls of `pipe` in the block, and in its thread, sample many steps at a time.

    Arguments and errors are those of :class:`ParallelSampler`. In other threads `pipe` is what it was. Blocks may be
    nested, where the innermost counts, and left in any order.

    The pipeline's code runs unchanged, once a sweep instead of once a step. It is refused, and the call made again
    sequentially with one warning that says why (`fallback` in the run, too), when its loop decides by the step,
    changes the latents between steps, or gives its denoiser anything but latents and timestep that changes; and when
    a row evaluated among others differs from the same row alone. The generators are put back before.
    """
    settings = _settings(
        pipe,
        iteration=iteration,
        window=window,
        tolerance=tolerance,
        strides=strides,
        distributed=distributed,
        on_sweep=on_sweep,
        consistency=consistency,
        consistency_sweeps=consistency_sweeps,
        rounds=rounds,
    )
    run = ParallelRun()

    def call(beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        del beneath  # which may be parallel, too
        return _call(pipe, run, settings, args, kwargs)

    with overlaid(pipe, depth=1, __call__=call):  # recipes count it, those of a block around this one too
        yield run


def _settings(
    pipe: Any,
    *,
    iteration: str,
    window: int | Literal["auto"] | None,
    tolerance: float,
    strides: Strides,
    distributed: bool,
    on_sweep: Callable[[FixedPoint], None] | None,
    consistency: Any,
    consistency_sweeps: int | None,
    rounds: int | None,
) -> Settings:
    """Those of calls of `pipe`; ValueError for wrong ones, and for a pipeline that cannot be sampled in parallel."""
    modules = stepped_denoisers(pipe)
    if rounds is not None and getattr(pipe.config, "boundary_ratio", None) is not None:
        raise ValueError(f"rounds = {rounds}: {type(pipe).__name__} has two denoisers, each with sweeps of its own")
    if consistency is None and consistency_sweeps is not None:
        raise ValueError(f"consistency_sweeps = {consistency_sweeps} without consistency: give the model too")
    window, strides = resolved(window, strides, consistency is not None or rounds is not None)
    return Settings(
        iteration,
        window,
        tolerance,
        cuts=lambda timesteps: _expert_boundary(pipe, timesteps),
        constant_rows=any(denoiser.fixed_shapes for denoiser in modules),
        interrupted=lambda: bool(getattr(pipe, "interrupt", False)),
        shares=RowShares() if distributed else None,
        on_sweep=on_sweep,
        strides=strides,
        consistency=None if consistency is None else _consistency(modules, consistency, consistency_sweeps),
        rounds=rounds,
    )


def resolved(window: int | Literal["auto"] | None, strides: Strides, few_rounds: bool) -> tuple[int | None, Strides]:
    """Window and strides where they are "auto"; with few rounds, all steps and every row of them."""
    if window == "auto":
        window = None if few_rounds else 16
    return window, "none" if few_rounds and strides == "auto" else strides


def _consistency(modules: list[Denoiser], source: Any, sweeps: int | None) -> Consistency:
    """The consistency model of a pipeline's denoiser; ValueError where it is not for it."""
    if len(modules) > 1:
        raise ValueError(f"consistency is of one denoiser, and the pipeline has {len(modules)}")
    return Consistency.of(source, modules[0].module, sweeps)


def stepped_denoisers(pipe: Any) -> list[Denoiser]:
    """The denoisers that are called with a timestep; ValueError where sampling in parallel makes no sense."""
    components = getattr(pipe, "components", {})  # anything but a pipeline has none
    if components.get("scheduler") is None:
        raise ValueError(f"pipe = {type(pipe).__name__} has no scheduler whose steps could be made in parallel")
    found = [denoiser for denoiser in denoisers(pipe) if denoiser.timestep]
    if not found:
        raise ValueError(f"pipe = {type(pipe).__name__} has no component that is called with a timestep")
    for denoiser in found:
        if any(layer.name == GATE for layer in layers_on(denoiser)):
            raise ValueError(
                f"pipe.{denoiser.name} has T-GATE, which counts the steps of a sequential run: remove() it first"
            )
        check_caches(denoiser)
    check_guider(components.get("guider"))
    return found


def _call(pipe: Any, run: ParallelRun, settings: Settings, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The pipeline's call in parallel, and where that cannot be, as it is."""
    original = class_beneath(pipe)
    call: Callable[..., Any] = functools.partial(original.__call__, pipe)  # type: ignore[operator]
    arguments = inspect.signature(call).bind(*args, **kwargs).arguments
    streams, everyones = Streams(arguments.get("generator")), Streams(None)
    before, everyones_before, drawn = streams.state(), everyones.state(), False
    called = stepped_denoisers(pipe)
    run.fallback = step_decision(original, {**arguments, **arguments.get("kwargs", {})})
    if not run.fallback:
        with apart(pipe) as own:
            session = Session(own, called, settings)
            try:
                with session:
                    return call(*args, **session.callbacks(kwargs))
            except NotParallelError as error:
                run.fallback = str(error)
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
                if isinstance(error, torch.OutOfMemoryError) or not session.swept or error is session.failure:
                    raise
                run.fallback = f"{original.__name__} failed with many rows at once: {type(error).__name__}: {error}"
            finally:
                run.add(session.loops)
            drawn = any(loop.draws_from_all for loop in session.loops)
    warnings.warn(f"sampled sequentially: {run.fallback}", stacklevel=5)
    if drawn:
        everyones.restore(everyones_before)
    streams.restore(before)
    with apart(pipe):
        return call(*args, **kwargs)


def _expert_boundary(pipe: Any, timesteps: list[Tensor]) -> list[int]:
    """The first step of a second denoiser (Wan 2.2), which takes over below a part of the trained timesteps."""
    ratio = getattr(pipe.config, "boundary_ratio", None)
    if ratio is None:
        return []
    boundary = ratio * pipe.scheduler.config.num_train_timesteps
    first = next((index for index, timestep in enumerate(timesteps) if timestep < boundary), 0)
    return [first] if first else []
