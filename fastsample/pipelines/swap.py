"""Loading a saved pipeline that has parts of ours, and setting schedulers, those of combined pipelines too."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from diffusers import DiffusionPipeline

import fastsample.decoding.schedulers
import fastsample.schedulers  # noqa: F401  as diffusers looks for a saved scheduler among the modules that are loaded
from fastsample.pipelines.overlay import uncovered

_SCHEDULERS: WeakKeyDictionary[DiffusionPipeline, list[Any]] = WeakKeyDictionary()
"""The schedulers of pipelines with another one for a block: their own, and those of the blocks open."""
_SWAPPING = threading.Lock()


def load_pipeline(folder: str | os.PathLike[str], **kwargs: Any) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained`, with fastsample's schedulers, guiders and models known to it.

    diffusers takes a part of another package only from a module that has been imported, so that those of ours which
    the saved pipeline names are imported before.
    """
    for part in DiffusionPipeline.load_config(folder, **kwargs).values():
        module = part[0] if isinstance(part, (list, tuple)) and part else None
        if isinstance(module, str) and module.startswith("fastsample."):
            importlib.import_module(module)
    return DiffusionPipeline.from_pretrained(folder, **kwargs)


def set_scheduler(pipe: DiffusionPipeline, scheduler: Any) -> int:
    """Make `scheduler` the pipeline's, and that of the pipelines inside a combined one; how many were set.

    Raises ValueError when no pipeline there has a component named scheduler.
    """
    found = scheduled(pipe)
    for own in found:
        own.scheduler = scheduler
    return len(found)


@contextlib.contextmanager
def swapped(pipe: DiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """In the block `scheduler` is the pipeline's, in every thread, and that of those inside a combined one.

    Blocks may be left in any order: the scheduler is that of the latest one open, and in the end the one before all.
    Another that was set meanwhile goes with the block, with a warning.
    """
    found = scheduled(pipe)
    try:
        with _SWAPPING, uncovered():  # those of calls under way stay
            for own in found:
                _SCHEDULERS.setdefault(own, [own.scheduler]).append(scheduler)
                own.scheduler = scheduler
        yield
    finally:
        with _SWAPPING, uncovered():
            for own in found:
                _take_off(own, scheduler)


def _take_off(pipe: DiffusionPipeline, scheduler: Any) -> None:
    schedulers = _SCHEDULERS.get(pipe, [])
    place = next((place for place, other in enumerate(schedulers) if place and other is scheduler), None)
    if place is None:
        return
    latest = place == len(schedulers) - 1
    del schedulers[place]
    if latest:
        if pipe.scheduler is not scheduler:
            warnings.warn(
                f"pipe.scheduler was set to a {type(pipe.scheduler).__name__} meanwhile, and is now the one before "
                "again: set it now to keep it",
                stacklevel=5,
            )
        pipe.scheduler = schedulers[-1]
    if len(schedulers) == 1:
        del _SCHEDULERS[pipe]


def scheduled(pipe: DiffusionPipeline) -> list[DiffusionPipeline]:
    """`pipe` and the pipelines inside a combined one that have a scheduler; ValueError when none does."""
    pipelines = [pipe, *(part for part in pipe.components.values() if isinstance(part, DiffusionPipeline))]
    found = [own for own in pipelines if "scheduler" in own.components]
    if not found:
        raise ValueError(
            f"pipe = {type(pipe).__name__} has no scheduler: its components are {', '.join(pipe.components)}"
        )
    return found
