"""What T-GATE's hooks have done, and what it saved: evaluations, attention modules, multiply-accumulates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from torch.utils.flop_counter import FlopCounterMode

from fastsample.pipelines.tgate.policy import Action, Decision


@dataclass
class Counts:
    """What a pipeline's hooks have done since the handle was made or reset."""

    calls: int = 0  # of the pipeline
    evaluations: int = 0  # of the denoiser, one branch of one image each
    dropped: int = 0  # the same, not made
    cross_computed: int = 0  # attention modules
    cross_reused: int = 0
    self_computed: int = 0
    self_reused: int = 0
    rows_without_cross: int = 0  # evaluations whose cross-attention was reused
    rows_without_self: int = 0

    def evaluated(self, decision: Decision, rows: int, dropped: int, cross: int, self_attention: int) -> None:
        """Count an evaluation of `rows` rows, `dropped` others not made, by so many modules of each kind."""
        self.evaluations += rows
        self.dropped += dropped
        if decision.cross is Action.REUSE:
            self.rows_without_cross += rows
            self.cross_reused += cross
        else:
            self.cross_computed += cross
        if decision.self_attention is Action.REUSE:
            self.rows_without_self += rows
            self.self_reused += self_attention
        else:
            self.self_computed += self_attention


@dataclass
class Macs:
    """Multiply-accumulates of one branch of one image: the whole denoiser, its cross- and its self-attention."""

    denoiser: float = 0.0
    cross: float = 0.0
    self_attention: float = 0.0


class Meter:
    """Measures an evaluation's multiply-accumulates by torch's FLOP counter, the attention modules' apart."""

    def __init__(self) -> None:
        self._flops = FlopCounterMode(display=False)
        self._macs = Macs()

    @contextlib.contextmanager
    def evaluation(self, rows: int) -> Iterator[Macs]:
        """What an evaluation of `rows` in the block takes for each row; filled in when it is left."""
        with self._flops:
            yield self._macs
        self._macs.denoiser = self._flops.get_total_flops()
        for field in fields(Macs):
            setattr(self._macs, field.name, getattr(self._macs, field.name) / 2 / rows)

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


@dataclass(frozen=True)
class TGateSummary:
    """What a handle's hooks have done since it was made or reset.

    Modules hooked; calls of the pipeline; evaluations (of one branch of one image) made and dropped; attention
    modules computed and reused; multiply-accumulates that all evaluations would have taken, and those saved by
    dropping guidance and by reusing attention (torch's count, attention's own products included; 0 where the
    denoiser is compiled); bytes that the kept outputs of this thread's call take now.
    """

    cross_modules: int
    self_modules: int
    calls: int
    evaluations: int
    dropped: int
    cross_computed: int
    cross_reused: int
    self_computed: int
    self_reused: int
    macs: float
    macs_saved_by_guidance: float
    macs_saved_by_caching: float
    cache_bytes: int

    @classmethod
    def of(cls, counts: Counts, macs: Macs, cross_modules: int, self_modules: int, cache_bytes: int) -> TGateSummary:
        """The summary of `counts`, each evaluation at the cost `macs`."""
        values = asdict(counts)
        without_cross, without_self = values.pop("rows_without_cross"), values.pop("rows_without_self")
        return cls(
            cross_modules,
            self_modules,
            **values,
            macs=(counts.evaluations + counts.dropped) * macs.denoiser,
            macs_saved_by_guidance=counts.dropped * macs.denoiser,
            macs_saved_by_caching=without_cross * macs.cross + without_self * macs.self_attention,
            cache_bytes=cache_bytes,
        )

    @property
    def saved(self) -> float:
        """The share of multiply-accumulates saved."""
        return (self.macs_saved_by_guidance + self.macs_saved_by_caching) / self.macs if self.macs else 0.0
