"""What T-GATE's hooks on one pipeline share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from diffusers.hooks.hooks import BaseState, CacheContext, StateManager
from torch import Tensor

from fastsample.pipelines.tgate.call import (
    CallPerThread,
    Evaluation,
    GatedCall,
    calling_pipeline,
    guidance_of,
    steps_left,
)
from fastsample.pipelines.tgate.counts import Counts, Macs
from fastsample.pipelines.tgate.policy import Guidance, TGatePolicy


@dataclass(eq=False)
class Gated:
    """What the hooks of one pipeline share: policy and counts, each thread's call, and the evaluation under way.

    A pipeline may be called by several threads: they evaluate one after the other, under `lock`.
    """

    policy: TGatePolicy
    pipe: Any
    keep: str
    counts: Counts = field(default_factory=Counts)
    macs: dict[str, Macs] = field(default_factory=dict)  # by group, from the first evaluation
    calls: CallPerThread = field(default_factory=CallPerThread)
    evaluation: Evaluation | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)  # type: ignore[valid-type]

    def call(self, context: str, latents: Tensor) -> GatedCall:
        """This thread's call, a new one where it has begun. Raises ValueError where it cannot be gated."""
        pipe, call = calling_pipeline(self.pipe), self.calls.current
        scheduler = pipe.scheduler
        if call is not None and call.timesteps is scheduler.timesteps:
            return call
        self.calls.current = None
        self.policy.check_steps(steps_left(scheduler))
        guidance = guidance_of(pipe, context, latents)
        if self.policy.drop_guidance and guidance is Guidance.NONE:
            raise ValueError(
                "drop_guidance = True, but this call has no guidance to drop (neither a doubled batch nor two calls "
                "inside cache_context): set it to False"
            )
        self.calls.current = call = GatedCall(scheduler, scheduler.timesteps, guidance)
        self.counts.calls += 1
        return call

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: no thread's call."""
        return {name: value for name, value in vars(self).items() if name not in ("calls", "evaluation", "lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, calls=CallPerThread(), evaluation=None, lock=threading.RLock())


class ContextPerThread(StateManager):  # type: ignore[misc]
    """Which branch a thread evaluates, as diffusers' `cache_context` says; "" outside it."""

    def __init__(self) -> None:
        super().__init__(BaseState)
        self._own = threading.local()

    def set_context(self, context: CacheContext | None) -> None:
        """Called by `cache_context`."""
        self._own.context = context

    @property
    def name(self) -> str:
        """The branch."""
        context = vars(self._own).get("context")
        return "" if context is None else str(context.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return ContextPerThread, ()
