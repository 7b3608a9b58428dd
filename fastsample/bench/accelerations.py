"""What a benchmarked sampler may add to its solver: T-GATE, or parallel iteration over the steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fastsample.fixed_point import check_settings
from fastsample.pipelines.tgate import TGate


@dataclass(frozen=True)
class Gate:
    """T-GATE from `step` on. Without `cache` only guidance is dropped there: nothing is reused."""

    step: int
    cache: bool = True

    def __post_init__(self) -> None:
        self.tgate(2.0)  # a wrong step dies here

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"gate {self.step}" if self.cache else f"guidance cut {self.step}"

    def tgate(self, guidance: float) -> TGate:
        """The gate for a run at this guidance scale; above 1, where there is guidance, the gate drops it."""
        keep = "negative" if self.cache else "positive"
        return TGate(self.step, keep=keep, drop_guidance=guidance > 1, cache=self.cache)

    def fits(self, steps: int, guidance: float) -> bool:
        """Whether the gate changes anything in a run of that many steps at that guidance scale."""
        return self.step < steps and (self.cache or guidance > 1)


@dataclass(frozen=True)
class Parallel:
    """Parallel iteration as :class:`fastsample.ParallelSampler` takes it; `window` None is all steps at once."""

    iteration: str
    window: int | None
    tolerance: float

    def __post_init__(self) -> None:
        check_settings(self.iteration, self.window, self.tolerance)

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"{self.iteration} {self.window or 'all'} {self.tolerance:g}"

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of :func:`fastsample.parallelise`."""
        return asdict(self)

    def fits(self, steps: int, guidance: float) -> bool:
        """Whether there is more than one step to make at once."""
        del guidance
        return steps > 1
