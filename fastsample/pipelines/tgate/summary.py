"""What a gate has done and saved, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastsample.pipelines.tgate.counts import Counts, Macs, Shape
from fastsample.wording import counted


@dataclass(frozen=True)
class TGateSummary:
    """What a handle has done since it was made or reset; `print` it for sentences.

    Modules gated; calls of the pipeline; evaluations (of one branch of one image, ControlNets' too) made and dropped;
    attention modules computed and reused; multiply-accumulates that all evaluations would have taken, and those saved
    by dropping guidance and by reusing attention (torch's count, attention's own products included); bytes that the
    kept outputs of this thread's call take now.
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
    def of(
        cls, counts: Counts, macs: Mapping[Shape, Macs], cross_modules: int, self_modules: int, cache_bytes: int
    ) -> TGateSummary:
        """The summary of `counts`, where an evaluation of each shape costs `macs`."""
        made = [(own, macs[shape]) for shape, own in counts.evaluations.items()]
        return cls(
            cross_modules,
            self_modules,
            counts.calls,
            sum(own.made for own, _ in made),
            sum(own.dropped for own, _ in made),
            counts.cross_computed,
            counts.cross_reused,
            counts.self_computed,
            counts.self_reused,
            macs=sum((own.made + own.dropped) * cost.denoiser for own, cost in made),
            macs_saved_by_guidance=sum(own.dropped * cost.denoiser for own, cost in made),
            macs_saved_by_caching=sum(
                own.without_cross * cost.cross + own.without_self * cost.self_attention for own, cost in made
            ),
            cache_bytes=cache_bytes,
        )

    @property
    def saved(self) -> float:
        """The share of multiply-accumulates saved."""
        return _share(self.macs_saved_by_guidance + self.macs_saved_by_caching, self.macs)

    def __str__(self) -> str:
        evaluations = self.evaluations + self.dropped
        cross, own = self.cross_computed + self.cross_reused, self.self_computed + self.self_reused
        calls, made = counted(self.calls, "call"), counted(self.evaluations, "evaluation")
        of_cross, of_self = counted(self.cross_modules, "module"), counted(self.self_modules, "module")
        return (
            f"{calls} of the pipeline took {made} of one branch of one image; "
            f"{self.dropped} of {evaluations} ({_share(self.dropped, evaluations):.1%}) were dropped with guidance. "
            f"Cross-attention ({of_cross}) was reused {self.cross_reused} of {counted(cross, 'time')} "
            f"({_share(self.cross_reused, cross):.1%}), self-attention ({of_self}) "
            f"{self.self_reused} of {counted(own, 'time')} ({_share(self.self_reused, own):.1%}). "
            f"{self.saved:.1%} of {self.macs / 1e9:,.1f} G multiply-accumulates were saved: "
            f"{_share(self.macs_saved_by_guidance, self.macs):.1%} by dropping guidance, "
            f"{_share(self.macs_saved_by_caching, self.macs):.1%} by reusing attention. "
            f"{self.cache_bytes / 2**20:.1f} MiB of outputs are kept now."
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
