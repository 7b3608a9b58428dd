"""T-GATE's hook on an attention module: its output is computed, kept or returned again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn

from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.tgate.counts import Meter
from fastsample.pipelines.tgate.policy import Action, Decision
from fastsample.pipelines.tgate.targets import TextReader

Kept = dict[tuple[Branch, ...], Tensor]
"""A module's outputs by the guidance branches that lie in their batches; by none where it is the branches' mean."""

MEAN: tuple[Branch, ...] = ()


@dataclass
class Evaluation:
    """What attention is to do in a denoiser's evaluation, of a batch of `branches`.

    `kept` are the outputs of the run, by the modules' names; `meter` measures the evaluation.
    """

    decision: Decision
    branches: tuple[Branch, ...]
    kept: dict[str, Kept]
    meter: Meter | None = None


def measuring(meter: Meter) -> Evaluation:
    """One that `meter` measures, in which everything is computed."""
    return Evaluation(Decision(Action.COMPUTE, Action.COMPUTE), (), {}, meter)


class UnderWay:
    """The evaluation that each thread is in, or None.

    What torch.compile has made of attention reads the one of `compiled`, as it can follow plain attributes alone:
    there evaluations are made one after the other.
    """

    def __init__(self) -> None:
        self.compiled: Evaluation | None = None
        self._own = threading.local()
        self._lock = threading.RLock()

    def get(self) -> Evaluation | None:
        """The one that this thread is in."""
        if torch.compiler.is_compiling():
            return self.compiled
        return getattr(self._own, "evaluation", None)

    def set(self, evaluation: Evaluation | None) -> None:
        """Enter it in this thread, or leave it."""
        self._own.evaluation = evaluation

    @contextmanager
    def entered(self, evaluation: Evaluation, compiled: bool) -> Iterator[None]:
        """In the block this thread is in it."""
        around = self.get()
        self.set(evaluation)
        try:
            if not compiled:
                yield
                return
            with self._lock:
                outer, self.compiled = self.compiled, evaluation
                try:
                    yield
                finally:
                    self.compiled = outer
        finally:
            self.set(around)

    def __reduce__(self) -> tuple[Any, ...]:
        return UnderWay, ()


class AttentionHook(ModelHook):  # type: ignore[misc]
    """In the place of an attention module's forward, so that forward hooks see what is returned again, too."""

    def __init__(self, under_way: UnderWay, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name, self.module = name, module
        self.cross: bool | None = None  # unknown before the first call
        self.reads_text = TextReader(module)
        self._under_way = under_way

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        evaluation = self._under_way.get()
        if evaluation is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        self.cross = self.reads_text(args, kwargs)
        decision = evaluation.decision
        action = decision.cross if self.cross else decision.self_attention
        if action is Action.COMPUTE:
            if evaluation.meter is None:
                return self.fn_ref.original_forward(*args, **kwargs)
            with evaluation.meter.attention(self.cross):
                return self.fn_ref.original_forward(*args, **kwargs)
        kept = evaluation.kept.setdefault(self.name, {})
        if action is Action.REUSE:
            again = _again(kept, evaluation.branches, decision.mean_of_calls)
            if again is not None:
                return again
        output = self.fn_ref.original_forward(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"{type(module).__name__} returns a {type(output).__name__}: joint attention, which cannot be cached"
            )
        if decision.one_branch:  # what is older is of all branches
            kept.clear()
        if decision.mean_of_halves:
            kept[MEAN] = torch.stack(output.chunk(len(evaluation.branches))).mean(0)
        else:
            kept[evaluation.branches] = output
        return output


def _again(kept: Kept, branches: tuple[Branch, ...], mean: bool) -> Tensor | None:
    """The output kept for `branches`, or the mean of all that are not perturbed; None where one has none."""
    if mean and MEAN not in kept and kept:
        guidance = [own for own in kept if own != (Branch.OTHER,)]
        average = torch.stack([part for own in guidance for part in kept[own].chunk(len(own))]).mean(0)
        kept.clear()
        kept[MEAN] = average
    if MEAN in kept:
        return kept[MEAN]
    if branches in kept:
        return kept[branches]
    for own, output in kept.items():
        if len(branches) == 1 and branches[0] in own:
            return output.chunk(len(own))[own.index(branches[0])]
    return None
