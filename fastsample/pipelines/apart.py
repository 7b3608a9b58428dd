"""A pipeline for one thread alone: what its call sets, its scheduler and its guider are nobody else's."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from fastsample.pipelines.overlay import Attribute, overlaid
from fastsample.pipelines.stateful import stateful

INTERRUPT = "_interrupt"
"""Where pipelines keep that they are to stop; other threads set it, and callbacks."""


@contextlib.contextmanager
def apart(pipe: Any, scheduler: Any = None) -> Iterator[Any]:
    """A shallow copy of `pipe`, which `pipe` stands for in the block, with copies of its guider and its scheduler.

    `scheduler`, where it is given, is what is copied in the place of its own.
    In the block's thread whatever is read or set on `pipe` is the copy's, so that `pipe` can be called, and callbacks
    find what they expect; in other threads it is what it was. Networks are shared. Interrupting `pipe` there
    interrupts the copy too.
    """
    held = vars(pipe)  # the pipeline's own, also while it stands for the copy
    own = copy.copy(pipe)
    if held.get("guider") is not None:  # it knows one step, of one call
        vars(own)["guider"] = copy.copy(held["guider"])
    found = getattr(pipe, "scheduler", None) if scheduler is None else scheduler
    if found is not None:
        vars(own)["scheduler"] = copied(found)
    if held.get(INTERRUPT):  # of a call before
        held[INTERRUPT] = False
    with (
        overlaid(own, _interrupt=Attribute(lambda interrupted: interrupted or held.get(INTERRUPT, False))),
        overlaid(
            pipe,
            __getattribute__=lambda beneath, name: getattr(own, name),
            __setattr__=lambda beneath, name, value: setattr(own, name, value),
            __delattr__=lambda beneath, name: delattr(own, name),
        ),
    ):
        yield own


def copied(scheduler: Any) -> Any:
    """A scheduler at the same point of the same run, whose steps leave `scheduler` as it is."""
    own = copy.copy(scheduler)
    run = stateful(own)
    run.restore(run.state())  # a shallow copy has the lists and tensors that steps write into
    return own
