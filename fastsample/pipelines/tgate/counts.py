"""What T-GATE has done on a pipeline, and what it saved: evaluations, attention modules, multiply-accumulates."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fastsample.pipelines.tgate.policy import Action, Decision

Shape = tuple[Any, ...]
"""A denoiser's name, and the shapes of what it was called with, but for the batch."""


def shape_of(name: str, values: Iterable[Any]) -> Shape:
    """That of a call of the denoiser `name` with these arguments."""
    return name, *(tuple(value.shape[1:]) if isinstance(value, Tensor) else type(value) for value in values)


@dataclass
class Macs:
    """Multiply-accumulates of one branch of one image: the whole denoiser, its cross- and its self-attention."""

    denoiser: float = 0.0
    cross: float = 0.0
    self_attention: float = 0.0


@dataclass
class Evaluations:
    """Those of a denoiser with inputs of one shape, each of one branch of one image."""

    made: int = 0
    dropped: int = 0
    without_cross: int = 0  # made, with cross-attention reused
    without_self: int = 0


@dataclass
class Counts:
    """What was done since the handle was made or reset."""

    calls: int = 0  # of the pipeline
    cross_computed: int = 0  # attention modules
    cross_reused: int = 0
    self_computed: int = 0
    self_reused: int = 0
    evaluations: dict[Shape, Evaluations] = field(default_factory=dict)

    def evaluated(
        self, shape: Shape, decision: Decision, rows: int, dropped: int, cross: int, self_attention: int
    ) -> None:
        """Count an evaluation of `rows` rows, `dropped` others not made, by so many modules of each kind."""
        own = self.evaluations.setdefault(shape, Evaluations())
        own.made += rows
        own.dropped += dropped
        if not rows:
            return
        if decision.cross is Action.REUSE:
            own.without_cross += rows
            self.cross_reused += cross
        else:
            self.cross_computed += cross
        if decision.self_attention is Action.REUSE:
            own.without_self += rows
            self.self_reused += self_attention
        else:
            self.self_computed += self_attention


@dataclass(frozen=True)
class Sample:
    """A denoiser's call of `rows` rows to measure later: of floating-point tensors the shapes alone."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Sample:
        """That of a call."""
        return cls(tree_map(_without_values, args), tree_map(_without_values, kwargs), rows)

    def measured(self, module: nn.Module, meter: Meter) -> Macs:
        """What it costs, by torch's FLOP counter. Compiled parts are run as they are written."""
        args, kwargs = tree_map(_with_ones, (self.args, self.kwargs))
        stance = torch.compiler.set_stance("force_eager")  # a counter sees nothing of what is compiled
        with torch.no_grad(), stance, meter.evaluation(self.rows) as macs, _unobserved(module):
            module.forward(*args, **kwargs)
        return macs


@contextlib.contextmanager
def _unobserved(module: nn.Module) -> Iterator[None]:
    """In the block no forward hook is called, as it is no evaluation that anybody asked for."""
    observed = [part for part in module.modules() if part._forward_pre_hooks or part._forward_hooks]
    held = [(part, part._forward_pre_hooks, part._forward_hooks) for part in observed]
    for part, _, _ in held:
        part._forward_pre_hooks, part._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for part, before, after in held:
            part._forward_pre_hooks, part._forward_hooks = before, after


@dataclass(frozen=True)
class _Shape:
    size: torch.Size
    dtype: torch.dtype
    device: torch.device


def _without_values(value: Any) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return _Shape(value.shape, value.dtype, value.device) if floating else value


def _with_ones(value: Any) -> Any:
    return torch.ones(value.size, dtype=value.dtype, device=value.device) if isinstance(value, _Shape) else value


class Meter:
    """Measures an evaluation's multiply-accumulates, the attention modules' apart."""

    def __init__(self) -> None:
        self._flops = FlopCounterMode(display=False)
        self._macs = Macs()

    @contextlib.contextmanager
    def evaluation(self, rows: int) -> Iterator[Macs]:
        """What an evaluation of `rows` in the block takes for each row; filled in when it is left."""
        with self._flops:
            yield self._macs
        self._macs.denoiser = self._flops.get_total_flops()
        for part in fields(Macs):
            setattr(self._macs, part.name, getattr(self._macs, part.name) / 2 / rows)

    @contextlib.contextmanager
    def attention(self, cross: bool) -> Iterator[None]:
        """An attention module's share of it."""
        before = self._flops.get_total_flops()
        yield
        made = self._flops.get_total_flops() - before
        if cross:
            self._macs.cross += made
        else:
            self._macs.self_attention += made
