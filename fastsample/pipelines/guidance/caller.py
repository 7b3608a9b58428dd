"""Who calls a denoiser: the pipeline, its loop, and what the loop says of guidance at this very call."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.guiders.guider_utils import BaseGuidance

from fastsample.pipelines.guidance.reading import Branch, Condition, Site, read_site

PASSED_THROUGH = ("torch.", "accelerate.", "diffusers.hooks.", "fastsample.pipelines.")
"""Packages whose frames lie between a sampling loop and the network that it calls."""

COMPILER = "torch._dynamo.eval_frame"
"""The module whose frames call what is compiled."""

GUIDED = ("do_classifier_free_guidance", "do_true_cfg")
"""Variables and attributes by which a pipeline says that it is guided."""

MOMENTUM = "momentum_buffer"
"""The variable of a loop, or attribute of a guider, that goes on with the guidance of the steps before."""

OF_GUIDERS = {"pred_cond": Branch.POSITIVE, "pred_uncond": Branch.NEGATIVE}
"""What guiders call their branches; all others are perturbed."""


@dataclass(frozen=True)
class Branches:
    """The guidance branches of one call of a denoiser.

    `copies`: those that lie one after the other in its batch. Where they are calls, it has one, and `calls` is True;
    `ahead`: whether the positive one of the step comes before it.
    """

    copies: tuple[Branch, ...] = (Branch.POSITIVE,)
    calls: bool = False
    ahead: bool = False
    perturbed_attention: bool = False
    may_come: bool = False  # not guided now, but it depends on the step

    @property
    def guided(self) -> bool:
        """Whether there is more than the positive branch at this step."""
        return self.calls or len(self.copies) > 1


@dataclass(frozen=True, eq=False)
class Caller:
    """The pipeline whose loop makes the call, or the one that was hooked for a loop of the user's own.

    `frame` is that of the pipeline's `__call__`, None in a loop of the user's own.
    """

    pipe: Any
    frame: FrameType | None
    compiled: bool  # whether the call goes through torch.compile
    _loops: tuple[FrameType, ...]  # from the function that calls the network on outwards

    @classmethod
    def find(cls, hooked: Any) -> Caller:
        """From the stack. Networks are shared (`from_pipe`): the pipeline that calls may be another than `hooked`."""
        around = tuple(_outwards(sys._getframe(1)))
        frames = tuple(frame for frame in around if not _module(frame).startswith(PASSED_THROUGH))
        compiled = any(_module(frame) == COMPILER for frame in around)
        for place, frame in enumerate(frames):
            owner = frame.f_locals["self"] if frame.f_code.co_varnames[:1] == ("self",) else None
            if frame.f_code.co_name == "__call__" and (owner is hooked or isinstance(owner, DiffusionPipeline)):
                return cls(owner, frame, compiled, frames[: place + 1])
        return cls(hooked, None, compiled, frames)

    def branches(self, name: str) -> Branches:
        """Those of this call of the denoiser `name`. Raises ValueError where the loop cannot be understood."""
        for frame in self._loops:
            site = read_site(frame.f_code, frame.f_lineno)
            found = _found(site, frame, self.frame is None) if site is not None else None
            if found is not None and found.perturbed_attention:
                cut = found.copies if self._guided else found.copies[1:]
                return Branches(cut, perturbed_attention=True)
            if found is not None:
                alone = name.startswith("controlnet") and frame.f_locals.get("guess_mode") and found.guided
                return Branches(may_come=True) if alone and not found.calls else found
            if site is not None and not site.returned:
                break
        if self.frame is None or not self._guided:
            return Branches(may_come=any(map(_guides, self._guiders)))
        if name.startswith("controlnet"):  # one call for all branches of the network
            return Branches(may_come=True)
        raise ValueError(
            f"{type(self.pipe).__name__} is guided in a way that its source does not tell (which copies of the "
            "batch, or which calls of the network, are its branches): call it without guidance"
        )

    def check_momentum(self) -> None:
        """ValueError where guidance would go on in steps from which it is dropped."""
        holders = [vars(guider) for guider in self._guiders] + [frame.f_locals for frame in self._loops]
        if any(holder.get(MOMENTUM) is not None for holder in holders):
            raise ValueError(
                f"{type(self.pipe).__name__} guides with a momentum over steps, which would go on where guidance is "
                "dropped: set the momentum to None, or the steps that its own guidance begins and ends at"
            )

    @property
    def _guiders(self) -> list[BaseGuidance]:
        parts = getattr(self.pipe, "components", {})
        return [part for part in parts.values() if isinstance(part, BaseGuidance)]

    @property
    def _guided(self) -> bool:
        """Whether the pipeline says so."""
        own = {} if self.frame is None else self.frame.f_locals
        return any(own.get(name) or _says(self.pipe, name) for name in GUIDED)


def _guides(guider: BaseGuidance) -> bool:
    """Whether a guider has several branches at some step of the run that it is in."""
    own = copy.copy(guider)
    for step in range(own._num_inference_steps or 0):
        own._step = step
        if own.num_conditions > 1:
            return True
    return False


def _says(pipe: Any, name: str) -> bool:
    """A property of a pipeline; False where it has none, or its call has not set what that is made of."""
    try:
        return bool(getattr(pipe, name, False))
    except TypeError:
        return False


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those around it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _found(site: Site, frame: FrameType, of_users: bool) -> Branches | None:
    """The branches at `site`; None where there are none to be seen there."""
    made = [call for call in site.siblings if _hold(call.conditions, frame)]
    for split in site.splits:
        if not _hold(split.conditions, frame):
            continue
        alike = sum(call.branch is site.call.branch for call in made)
        if alike > 1:
            raise ValueError(
                f"{frame.f_code.co_qualname} calls the network {alike} times in a step, for all branches of guidance "
                "each time, which does not tell the step: turn off what needs the others"
            )
        if split.perturbed_attention:
            return Branches((Branch.NEGATIVE, Branch.POSITIVE, Branch.OTHER), perturbed_attention=True)
        if split.branches:
            return Branches(split.branches)
        if of_users and split.count == 2:  # as all of diffusers has it
            return Branches((Branch.NEGATIVE, Branch.POSITIVE))
        raise ValueError(
            f"{frame.f_code.co_qualname} takes the output at line {site.call.line} apart into branches whose names "
            "do not tell which is which: call it without guidance"
        )
    prepared, now = frame.f_locals.get("guider_state", ()), frame.f_locals.get("guider_state_batch")
    if len(prepared) > 1 and now is not None:  # a guider's, which calls the network for one after the other
        branch = OF_GUIDERS.get(getattr(now, BaseGuidance._identifier_key), Branch.OTHER)
        return Branches((branch,), calls=True, ahead=branch is not Branch.POSITIVE)
    others = [call for call in site.siblings if call.branch is not Branch.POSITIVE]
    positive = [call.line for call in made if call.branch is Branch.POSITIVE]
    if positive and len(positive) < len(made):
        own = site.call.branch
        return Branches((own,), calls=True, ahead=own is not Branch.POSITIVE and min(positive) < site.call.line)
    if of_users and len(positive) > 1:
        raise ValueError(
            f"{frame.f_code.co_qualname} calls the network {len(positive)} times in a step, and the names of what it "
            "returns do not tell which branch of guidance each is for: name them, as noise_uncond and noise_cond"
        )
    rules = [rule for part in (site.splits, others) for one in part for rule in one.conditions]
    named = {name for rule in rules for name in rule.names}
    return Branches(may_come=True) if named & site.assigned else None


def _hold(conditions: Iterable[Condition], frame: FrameType) -> bool:
    """Whether a statement runs at this pass, by the conditions around it in the frame of the loop."""
    for condition in conditions:
        try:
            value = bool(eval(condition.expression, frame.f_globals, frame.f_locals))
        except NameError:  # it is made later in the loop
            return False
        if value is not condition.wanted:
            return False
    return True
