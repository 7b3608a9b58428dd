"""Loading a saved pipeline whose scheduler is ours, and setting schedulers, those of combined pipelines too."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline

import fastsample.decoding.schedulers
import fastsample.schedulers  # noqa: F401  as diffusers looks for a saved scheduler among the modules that are loaded


def load_pipeline(folder: str, **kwargs: Any) -> DiffusionPipeline:
    """`DiffusionPipeline.from_pretrained`, with fastsample's schedulers known to it.

    diffusers resolves a foreign scheduler only when its module has been imported, as this module's package is, and as
    that of the commit schedulers is here.
    """
    return DiffusionPipeline.from_pretrained(folder, **kwargs)


def set_scheduler(pipe: DiffusionPipeline, scheduler: Any) -> int:
    """Make `scheduler` the pipeline's, and that of the pipelines inside a combined one; how many were set.

    Raises ValueError when no pipeline there has a component named scheduler.
    """
    found = scheduled(pipe)
    for own in found:
        own.scheduler = scheduler
    return len(found)


def scheduled(pipe: DiffusionPipeline) -> list[DiffusionPipeline]:
    """`pipe` and the pipelines inside a combined one that have a scheduler; ValueError when none does."""
    pipelines = [pipe, *(part for part in pipe.components.values() if isinstance(part, DiffusionPipeline))]
    found = [own for own in pipelines if "scheduler" in own.components]
    if not found:
        raise ValueError(
            f"pipe = {type(pipe).__name__} has no scheduler: its components are {', '.join(pipe.components)}"
        )
    return found
