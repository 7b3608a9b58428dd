"""Tune a pipeline's sampler by forward calls: for each guidance and number of evaluations the best table found."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fastsample.cache import cache_folder
from fastsample.tables.preset import Preset
from fastsample.tuning.arguments import TUNED, Arguments
from fastsample.tuning.budget import needed
from fastsample.tuning.guided import Guided, untouched
from fastsample.tuning.oracle import Calls
from fastsample.tuning.pairs import Purse
from fastsample.tuning.stages import Stages
from fastsample.tuning.target import Target, target_of
from fastsample.version import __version__

STAGES = 5
"""The form of the stages on disk: those of another number are not gone on with."""


def tune(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    steps: Sequence[int] = (5, 8),
    guidance: Sequence[float] = (3.0,),
    seeds: Sequence[int] = (0,),
    budget: int = 20_000,
    objective: str = "rms",
    solver: str | None = None,
    grid_only: bool = False,
    check_prompts: Sequence[Any] | None = None,
    quality: Callable[[Any, list[Any]], Sequence[float]] | None = None,
    call: Mapping[str, Any] | None = None,
    batch: int = 64,
    folder: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
) -> Preset:
    """The preset of tables tuned for `pipe`: one for each number of evaluations in `steps` at each `guidance`.

    By forward calls alone, in the pipeline's own dtype and on its device: converged trajectories of every pair of a
    prompt and a seed, then all solvers on all grids by successive halving, the best one's grid, its weights, and
    both together with the times that the network is told. What is kept is the best of these on held-out prompts, and
    only where fresh prompts (`check_prompts`, or a quarter of `prompts`) with fresh seeds show that it is no worse
    than the best there of the untuned cells that led the screen; `quality(images, prompts)`, scores of which more is
    better, can veto it. With fewer than 4 pairs nothing is tuned, below 16 the grid alone, as with `grid_only`. A
    small budget looks at fewer cells and tunes on fewer pairs, 16 at least.

    `budget` are the guided evaluations of all cells together, each counted once whether or not guidance doubles it;
    never more are made. `objective` is "rms", or "huber", which lets no few samples rule; `solver` the one to tune,
    by default the best of several. `call` are further arguments of the pipeline's calls (height, ..); `batch` is the
    most images evaluated at once.
    What was found is kept in `folder` (default: below $FASTSAMPLE_CACHE) as it comes: the same call after an
    interrupt goes on from there, and ends with the same preset. `report` is called with what is under way. Processes
    that torchrun or accelerate launch started share the evaluations.

    Raises ValueError, before any evaluation, for wrong arguments, a budget too small for one stage, a scheduler of
    ours that draws noise, and pipelines that cannot be asked for rows of samples (see
    :func:`fastsample.parallelise`) or are neither VP nor flow.
    """
    asked = Arguments(
        prompts=prompts if isinstance(prompts, str) else tuple(prompts),  # type: ignore[arg-type]
        steps=tuple(steps),
        guidance=tuple(guidance),
        seeds=tuple(seeds),
        budget=budget,
        objective=objective,
        solver=solver,
        grid_only=grid_only,
        check_prompts=None if check_prompts is None else tuple(check_prompts),
        batch=batch,
        quality=quality,
    )
    target = target_of(pipe, {} if call is None else call)
    for scale in asked.guidance:
        Calls(pipe, scale, target.arguments).of(asked.sets.tune)  # wrong arguments of the calls are refused here
    least = needed(asked.sizes, asked.steps, len(asked.guidance))
    if asked.budget < least:
        raise ValueError(
            f"budget = {budget}: {len(asked.steps) * len(asked.guidance)} cells of {asked.pairs} pairs need at least "
            f"{least} guided evaluations; give more, or fewer prompts or steps"
        )
    say = report or (lambda text: None)
    if asked.pairs < TUNED:
        return target.preset([untouched(target, count, scale) for scale in asked.guidance for count in asked.steps])
    purse = Purse(asked.budget)
    home = cache_folder() / "tuning" if folder is None else Path(folder)
    stages = Stages(home / _key(asked, target), purse, say)
    entries = []
    with stages.alone():
        whole = stages.value("timesteps", lambda: target.takes_whole(asked.sets.tune[0], asked.guidance[0], purse))
        for index, scale in enumerate(asked.guidance):
            with contextlib.closing(Guided(asked, target, scale, stages, whole=whole)) as guided:
                entries += guided.entries(later=len(asked.guidance) - index - 1)
    return target.preset(entries)


def _key(asked: Arguments, target: Target) -> str:
    """Names the folder of the stages: a hash of all that their results depend on."""
    call = sorted((name, repr(value)) for name, value in target.arguments.items())
    config = sorted((name, repr(value)) for name, value in target.pipe.scheduler.config.items())
    given = [_written(prompt) for prompt in (*asked.prompts, *(asked.check_prompts or ()))]
    quality = getattr(asked.quality, "__qualname__", type(asked.quality).__name__)
    versions = (STAGES, __version__, torch.__version__)
    known = (target.model, target.dtype, config, call, given, asked, quality, versions)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:20]


def _written(prompt: Any) -> str:
    """A prompt as text, which says what its tensors hold."""
    if isinstance(prompt, Mapping):
        return repr(sorted((name, _written(value)) for name, value in prompt.items()))
    return repr(prompt.flatten().tolist()) if isinstance(prompt, torch.Tensor) else repr(prompt)
