"""Which step a timestep means, and from which of the trajectories that have come so far: no step is only counted."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastsample.schedulers.layout import Compiled, Layout, from_time
from fastsample.schedulers.run import Lane, Run


def located(run: Run, timestep: Any, sample: Tensor | None = None) -> Run:
    """`run` with the step that `timestep` means, from `sample`, as the coming one.

    Pipelines hand over the entries of `timesteps` one after the other: these are known by where they lie, and no
    device is waited for; any other tensor on a device is read. The step after the one made last goes on. That one
    again is made from what was carried before it. At any other time of the grid what was carried is dropped, and the
    solver warms up there; the first step may also be at a time between those of the grid.
    Raises ValueError at other times, and after the last step.
    """
    layout = run.laid.layout
    if layout is None:
        raise ValueError("num_inference_steps = None: call set_timesteps before step")
    coming = run.coming
    index = run.laid.index_of_view(timestep) if isinstance(timestep, Tensor) else None
    if index is None or index != coming:
        index = _index_at(run, layout, timestep, sample) if index is None else index
    if index is None:
        first = from_time(run.laid, float(timestep))
        return Run(first, 0)
    if run.step_index is None:
        if index and layout.tuned:
            warnings.warn(
                f"preset: a run that starts at step {index} of {len(layout)} is sampled untuned, by "
                f"{run.laid.setup.name!r}: a tuned table is for whole runs",
                stacklevel=3,
            )
        return run.at(index)
    if index == run.step_index:
        return run
    if index == run.step_index - 1 and index >= run.start:
        return replace(run, step_index=index, lanes=run.previous, previous=(), beside=run.lanes)
    return run.at(index)


def _index_at(run: Run, layout: Layout, timestep: Any, sample: Tensor | None) -> int | None:
    """The evaluation at `timestep`; None where the first step is between two of the grid."""
    time = float(timestep)
    coming, made = run.coming, None if run.step_index is None else run.step_index - 1
    told = [index for index in (coming, made) if index is not None and 0 <= index < len(layout)]
    told = [index for index in told if layout.times[index] == time]
    if len(told) == 2 and any(lane.returned(sample) for lane in run.previous if lane is not run.source):
        return made  # a stage and the step after it are told one time: this is another row's stage
    if told:
        return told[0]
    nearest = layout.nearest(time)
    away = abs(layout.times[nearest] - time)
    if coming is not None and coming < len(layout) and abs(layout.times[coming] - time) <= away:
        nearest = coming
    if away <= _rounding(run, timestep, time):
        return nearest
    if run.step_index is None:
        return None
    if run.step_index >= len(layout):
        raise ValueError(f"timestep = {time:g}: all {len(layout)} steps are done; call set_timesteps again")
    raise ValueError(
        f"timestep = {time:g}: not a time of this run, whose coming one is {layout.times[run.step_index]:g}; step at "
        "the scheduler's timesteps, or lay out yours by set_timesteps(timesteps=..)"
    )


def _rounding(run: Run, timestep: Any, time: float) -> float:
    """By how much a time may be off for being rounded: to a whole timestep, or to a short float."""
    schedule = run.laid.setup.schedule
    slack = 1e-3 * abs(schedule.noise_time - schedule.clean_time)
    if isinstance(timestep, Tensor) and timestep.dtype in (torch.float16, torch.bfloat16):
        slack = max(slack, torch.finfo(timestep.dtype).eps * abs(time))
    return slack


def lane_for(run: Run, sample: Tensor, compiled: Compiled) -> Lane | None:
    """The trajectory that `sample` belongs to; None where nothing has been carried yet.

    Where the step before was made several times (row by row, or again after noise was added) it is the one whose
    step returned this very tensor. Raises ValueError where that is none.
    """
    lanes = run.lanes
    if len(lanes) <= 1 or not compiled.carries:
        return lanes[-1] if lanes else None
    found = [lane for lane in lanes if lane.returned(sample)]
    if len(found) != 1:
        raise ValueError(
            f"sample is none of the {len(lanes)} that the step before, made as often, returned, so it is open which "
            f"history {compiled.table.solver!r} goes on with: step all rows at once, or use DDIMScheduler"
        )
    return found[0]
