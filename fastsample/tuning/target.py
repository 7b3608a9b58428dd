"""The pipeline that is tuned: its noise schedule, where its runs begin and end, and what its network is told."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from fastsample.pipelines.denoisers import denoisers
from fastsample.pipelines.serving import check_servable
from fastsample.pipelines.weights import fingerprint
from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.grid import GridRequest, make_nodes, whole_timesteps
from fastsample.schedules import NoiseSchedule
from fastsample.schedules.base import Node
from fastsample.tables.preset import FORMAT, Entry, Preset, schedule_digest
from fastsample.tuning.budget import PROBES
from fastsample.tuning.oracle import Calls, Oracle, Pair, plain_scheduler
from fastsample.tuning.pairs import Purse
from fastsample.tuning.problem import Problem
from fastsample.version import __version__

LONG_RUN = 200
"""Steps of the pipeline's own run whose last model time the teacher has: a network says little below it, and what it
says there would move the ends by more than a sampler's error."""


@dataclass(frozen=True, eq=False)
class Target:
    """A pipeline with the further `arguments` of its calls; `last` is where the teacher evaluates last."""

    pipe: Any
    arguments: Mapping[str, Any]
    schedule: NoiseSchedule
    prediction_type: str
    first: Node
    last: Node
    final: Node
    dtype: torch.dtype
    model: str  # the hash of its weights
    config: Mapping[str, Any]  # of a scheduler of ours, with whatever shift does not depend on the resolution

    def preset(self, entries: Sequence[Entry]) -> Preset:
        """`entries` as a preset of this pipeline."""
        return Preset(
            FORMAT,
            self.schedule.kind,
            self.prediction_type,
            schedule_digest(self.schedule),
            self.model,
            Path(self.pipe.config.get("_name_or_path") or type(self.pipe).__name__).name,
            {"fastsample": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
            tuple(entries),
        )

    def problem(self, whole: bool) -> Problem:
        """The runs that are tuned."""

        def named(name: str, count: int) -> Sequence[Node]:
            return make_nodes(self.schedule, {**self.config, "timestep_grid": name}, GridRequest(count))

        return Problem(self.schedule, self.prediction_type, self.first, self.final, whole, named)

    def takes_whole(self, pair: Pair, guidance: float, purse: Purse) -> bool:
        """Whether the network is to be told whole timesteps: as diffusers does, or as it makes no others' difference.

        Between two whole ones it fails, or says the same as at one of them, where it looks timesteps up.
        """
        if self.schedule.kind == "flow":
            return whole_timesteps(self.schedule, self.pipe.scheduler.config)
        purse.spend(PROBES)
        oracle = Oracle(Calls(self.pipe, guidance, self.arguments), [pair], 4, whole=False)
        with contextlib.closing(oracle):
            try:
                start = oracle.start()
                time = self.first.time
                between, below = oracle(torch.stack([start.sample] * 2), [time - 0.5, time - 1.0])
            except (RuntimeError, IndexError, TypeError):
                return True
        return torch.equal(between, below) or torch.equal(between, start.output)


def target_of(pipe: Any, arguments: Mapping[str, Any]) -> Target:
    """What there is to tune of `pipe`. Raises ValueError where its loop or its model cannot be."""
    check_servable(pipe, arguments)
    if isinstance(pipe.scheduler, TableScheduler) and pipe.scheduler.stochastic:
        name = pipe.scheduler.solver()[0]
        raise ValueError(
            f"pipe.scheduler samples by {name!r}, which draws noise, as no tuned table does: set a deterministic one"
        )
    scheduler = plain_scheduler(pipe)
    schedule, config = scheduler.schedule, scheduler.config
    if schedule.kind == "edm":
        raise ValueError("pipe has an EDM model: only VP and flow-matching ones are tuned")
    if config["thresholding"] or config.get("clip_sample"):
        raise ValueError("the scheduler's config clips its predictions, which no table does: unset thresholding")
    long = {**config, "use_dynamic_shifting": False}  # the last time hardly depends on the resolution
    *_, last, final = make_nodes(schedule, long, GridRequest(min(LONG_RUN, schedule.train_steps or LONG_RUN)))
    first = make_nodes(schedule, {**long, "timestep_grid": "normal"}, GridRequest(2))[0]
    dtype = next(iter(denoisers(pipe)[0].module.parameters())).dtype
    return Target(pipe, dict(arguments), *prediction_of(pipe), first, last, final, dtype, fingerprint(pipe), long)


def prediction_of(pipe: Any) -> tuple[NoiseSchedule, str]:
    """The noise schedule of a pipeline's model, and what its network outputs."""
    scheduler = plain_scheduler(pipe)
    return scheduler.schedule, scheduler.schedule.output_type(scheduler.config["prediction_type"])
