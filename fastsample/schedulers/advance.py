"""From one state of a run to the next: pure functions around the one call that applies a row."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastsample.sampling.brownian import BrownianPath
from fastsample.sampling.executor import Runner
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.schedulers.layout import from_time
from fastsample.schedulers.locate import lane_for
from fastsample.schedulers.rows import RowHistory, serves
from fastsample.schedulers.run import Evaluation, Lane, Run
from fastsample.schedulers.setup import Setup
from fastsample.tables.step import Step


def under(run: Run, setup: Setup) -> Run:
    """`run` with what was assigned to the config or written into its tensors since: nothing carried is kept."""
    laid = run.laid.under(setup)
    if laid.layout is not run.laid.layout or run.step_index is None:
        return Run(laid, begin_index=run.begin_index)
    return replace(run, laid=laid).at(run.step_index)


def with_eta(run: Run, eta: float) -> Run:
    """`run` with steps of DDIM's or TCD's `eta`, 0 the config's own. Raises ValueError for another solver."""
    setup = run.laid.setup
    if setup.name not in ("ddim", "tcd"):
        raise ValueError(
            f"eta = {eta}: {setup.name!r} takes none from a step; use DDIMScheduler, or the config's eta"
        )
    if run.laid.layout is not None and run.laid.layout.tuned:
        raise ValueError(f"eta = {eta} with a preset, whose tables draw no noise: leave one of them out")
    return Run(run.laid, run.step_index, run.begin_index, run.start, eta)


def towards(run: Run, prev_timestep: float | Tensor) -> Run:
    """`run` with its coming step ending at `prev_timestep`; where that is not the grid's next, nothing is carried.

    Negative, or below the first time of training, it is the end. Raises ValueError where it is noisier.
    """
    layout, index = run.laid.layout, run.step_index
    assert layout is not None
    assert index is not None
    if isinstance(prev_timestep, Tensor) and run.laid.index_of_view(prev_timestep) == index + 1:
        return run
    end, last = float(prev_timestep), index + 1 == len(layout)
    if layout.times[index + 1] == end if not last else end < run.laid.setup.schedule.first_time:
        return run
    return Run(from_time(run.laid, layout.times[index], end), 0, eta=run.eta)


def ready(run: Run, sample: Tensor) -> tuple[Run, Lane, Runner, Step]:
    """The run, the trajectory that `sample` is on, what runs its coming step, and that step.

    Raises ValueError where the sample is not of the shape that the trajectory has had so far.
    """
    compiled = run.laid.compiled(run.start, run.eta)
    lane = lane_for(run, sample, compiled)
    if lane is None:
        if compiled.carries and run.step_index != run.start:
            run = run.at(run.step_index, run.eta)
            compiled = run.laid.compiled(run.start, run.eta)
        lane = Lane(Runner(compiled.table))
    step = compiled.table.steps[(run.step_index or 0) - run.start]
    if not compiled.carries:
        return run, lane, lane.runner, step
    runner = lane.runner.__copy__()
    if lane.shape and lane.shape != sample.shape:
        _fit(run, runner, lane.shape, sample)
    return run, lane, runner, step


def _fit(run: Run, runner: Runner, shape: Any, sample: Tensor) -> None:
    """Repeat what is carried where guidance of an EDM model has repeated the sample; ValueError at other shapes."""
    repeats, rest = divmod(len(sample), shape[0])
    if run.laid.setup.schedule.kind != "edm" or rest or repeats < 2 or sample.shape[1:] != shape[1:]:
        raise ValueError(
            f"sample has shape {tuple(sample.shape)}, but {tuple(shape)} at the step before, of which "
            f"{run.laid.setup.name!r} carries a history: call set_timesteps, or give each batch its own scheduler"
        )
    runner.stored = tuple([None if value is None else torch.cat([value] * repeats) for value in runner.stored])


def refuse_with_rows(run: Run, **given: Any) -> None:
    """Raise ValueError where rows or tokens at times of their own cannot be stepped, or not with such arguments."""
    if not serves(run):
        raise ValueError(
            f"timestep has a value for each row or token, and {run.laid.setup.name!r} draws noise, has stages or "
            "carries more than one entry of history: use DDIMScheduler, or DPMSolverScheduler of order 2"
        )
    for name, value in given.items():
        if value is not None and (isinstance(value, Tensor) or value != 0):
            raise ValueError(f"{name} cannot be given with a timestep a row or token: leave it out")


def drawn(run: Run, lane: Lane, sample: Tensor, generator: Generators) -> tuple[BrownianPath | None, Tensor]:
    """The path of noise that a trajectory follows from here on, None without, and the noise of its coming step."""
    if not run.laid.setup.brownian:
        return None, draw_noise(sample, generator)
    path = lane.path or BrownianPath.drawn(len(sample), generator)
    span = run.laid.compiled(run.start, run.eta).spans[(run.step_index or 0) - run.start]
    return path, path.noise(sample, *span)


def after_rows(run: Run, rows: RowHistory, last: Evaluation, *, counted: bool) -> Run:
    """The run after a step of rows or tokens at times of their own; `counted` where one of all rows was asked for."""
    index = (run.step_index or 0) + 1 if counted else run.step_index
    return Run(run.laid, index, run.begin_index, run.start, last=last, rows=rows)


def stepped(
    run: Run,
    lane: Lane,
    runner: Runner,
    last: Evaluation,
    made: Tensor,
    path: BrownianPath | None,
    rows: Tensor | None,
) -> Run:
    """The run after the step from `lane`, which gave `made` from the evaluation `last` and noise of `path`."""
    index = (run.step_index or 0) + 1
    common = run.laid, index, run.begin_index, run.start, run.eta
    if runner is lane.runner:  # nothing is carried
        return Run(*common, (lane,), (lane,), (), lane, last, rows)
    reached = Lane(runner, last.sample.shape, weakref.ref(made), path)
    return Run(*common, (*run.beside, reached), run.lanes or (lane,), (), lane, last, rows)
