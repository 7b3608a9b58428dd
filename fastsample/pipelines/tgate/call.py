"""What is known of the pipeline's call under way: its guidance, its steps so far, and what attention has kept."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor

from fastsample.pipelines.tgate.counts import Meter
from fastsample.pipelines.tgate.policy import Decision, Guidance

BATCHED = ("", "cond_uncond")
"""Contexts of calls that hold both guidance branches in one batch; others ("cond", "uncond") hold one."""

Kept = dict[str, dict[str, Tensor]]
"""The outputs that attention modules have kept, by their names and by the context of the denoiser's call."""


@dataclass(eq=False)
class GatedCall:
    """One call of a pipeline in one thread. `timesteps` tell it: the scheduler lays out new ones for each call."""

    scheduler: Any
    timesteps: Any
    guidance: Guidance
    kept: Kept = field(default_factory=dict)
    rows: int = 0  # of the last evaluation; 0 where it was not made
    first_branch: dict[str, tuple[int, str, Any]] = field(default_factory=dict)  # step, context, output by denoiser
    _evaluations: dict[tuple[str, str], int] = field(default_factory=dict)  # by group of denoisers and context

    def next_step(self, group: str, context: str) -> int:
        """The step of the coming evaluation; order-2 schedulers and PNDM's warm-up make several a step."""
        index = self._evaluations.get((group, context), 0)
        self._evaluations[group, context] = index + 1
        order = int(getattr(self.scheduler, "order", 1))
        extra = max(0, len(self.timesteps) - steps_of(self.scheduler) * order)
        return max(0, index - extra) // order


@dataclass
class Evaluation:
    """What the attention modules are to do in the denoiser's evaluation under way; `meter` measures it."""

    decision: Decision
    context: str
    kept: Kept
    meter: Meter | None = None


class CallPerThread(threading.local):
    """The call that a thread is in."""

    current: GatedCall | None = None


def steps_of(scheduler: Any) -> int:
    """Steps of the call, which are fewer than evaluations where a step makes several."""
    steps = getattr(scheduler, "num_inference_steps", None)
    return int(steps) if steps else len(scheduler.timesteps)


def steps_left(scheduler: Any) -> int:
    """Steps from where the call begins: fewer than all in image-to-image."""
    begin = int(getattr(scheduler, "begin_index", None) or 0)
    return steps_of(scheduler) - begin // int(getattr(scheduler, "order", 1))


def guidance_of(pipe: Any, context: str, latents: Tensor) -> Guidance:
    """As `pipe` says; where it does not, HALVES if the batch is two equal halves.

    Raises ValueError where the pipeline says that it is guided, and the batch is not that.
    """
    says = getattr(pipe, "do_classifier_free_guidance", None)
    if context not in BATCHED:
        return Guidance.CALLS if says is None or says else Guidance.NONE
    half, rest = divmod(len(latents), 2)
    # some models append an image to the channels, another one a branch
    doubled = not rest and bool((latents[:half] == latents[half:]).float().mean() > 0.1)
    if says and not doubled:
        raise ValueError(
            f"{type(pipe).__name__} is guided, but its batch of {len(latents)} is not one twice; "
            "T-GATE knows guidance as one doubled batch, or as two calls inside cache_context"
        )
    return Guidance.HALVES if (doubled if says is None else says) else Guidance.NONE


def calling_pipeline(hooked: Any) -> Any:
    """The pipeline whose `__call__` runs, or `hooked` in a loop of the caller's own.

    Networks are shared (`from_pipe`), and hooks know the network only: guidance and scheduler are the caller's.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "__call__" and frame.f_code.co_varnames[:1] == ("self",):
            owner = frame.f_locals["self"]
            if owner is hooked or isinstance(owner, DiffusionPipeline):
                return owner
    return hooked
