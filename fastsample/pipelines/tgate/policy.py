"""Which attention is computed, stored or reused at a step, and which guidance branches run: no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fastsample.wording import counted


class Action(Enum):
    """What an attention module does with its output."""

    COMPUTE = "compute"
    STORE = "store"  # compute, and keep the output
    REUSE = "reuse"  # return the kept output


class Guidance(Enum):
    """How a pipeline's call holds its two guidance branches."""

    NONE = "none"  # it has one branch
    HALVES = "halves"  # of one batch
    CALLS = "calls"  # of the denoiser


@dataclass(frozen=True)
class Decision:
    """Of one step: what cross- and self-attention do, and how many branches run.

    With `one_branch` guidance is dropped. What is stored is the mean of the branches with `mean_of_halves`, and what
    is reused with `mean_of_calls`.
    """

    cross: Action
    self_attention: Action
    one_branch: bool = False
    mean_of_halves: bool = False
    mean_of_calls: bool = False


@dataclass(frozen=True)
class TGatePolicy:
    """The decisions of T-GATE (arXiv:2404.02747, v1 cross-attention alone, v2 with self-attention).

    Steps count from 0; the gate lies before step `gate_step`. Cross-attention is computed before it and reused
    after. Self-attention is computed every `sp_interval` steps before the gate (always in the first `warm_up`) and
    every `fi_interval` steps after it. Raises ValueError on values out of range.
    """

    gate_step: int
    sp_interval: int = 1
    fi_interval: int = 1
    warm_up: int = 0
    drop_guidance: bool = True
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("gate_step", "sp_interval", "fi_interval", "warm_up"):
            value, least = getattr(self, name), 0 if name == "warm_up" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} = {value!r}: give an integer of at least {least}")
        for name in ("drop_guidance", "cache"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} = {getattr(self, name)!r}: use True or False")
        if not (self.cache or self.drop_guidance):
            raise ValueError("cache = False and drop_guidance = False leave nothing to do: set one of them")

    def check_steps(self, steps: int) -> None:
        """Raise ValueError unless the gate lies within `steps` steps."""
        if self.gate_step > steps:
            raise ValueError(
                f"gate_step = {self.gate_step} with {counted(steps, 'step')}: the gate would never close; lower it"
            )

    def decide(self, step: int, guidance: Guidance = Guidance.HALVES) -> Decision:
        """What happens at `step` of a call with such `guidance`."""
        gated, last = step >= self.gate_step, step == self.gate_step - 1
        dropped = gated and self.drop_guidance and guidance is not Guidance.NONE
        if not self.cache:
            return Decision(Action.COMPUTE, Action.COMPUTE, dropped)
        return Decision(
            cross=Action.REUSE if gated else Action.STORE if last else Action.COMPUTE,
            self_attention=self._self_attention(step, gated, last),
            one_branch=dropped,
            mean_of_halves=last and self.drop_guidance and guidance is Guidance.HALVES,
            mean_of_calls=dropped and guidance is Guidance.CALLS,
        )

    def _self_attention(self, step: int, gated: bool, last: bool) -> Action:
        """Stored only where a later step reads it."""
        if last:
            return Action.STORE if self.fi_interval > 1 else Action.COMPUTE
        interval = self.fi_interval if gated else self.sp_interval
        if interval == 1 or (not gated and step < self.warm_up):
            return Action.COMPUTE
        due = step % interval == 0 or (not gated and step == self.warm_up)
        return Action.STORE if due else Action.REUSE
