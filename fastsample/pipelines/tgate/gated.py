"""What T-GATE's layers on one pipeline share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from fastsample.pipelines.guidance.caller import Branches
from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.guidance.steps import Run, Runs
from fastsample.pipelines.tgate.attention import Kept, UnderWay
from fastsample.pipelines.tgate.counts import Counts, Macs, Sample, Shape
from fastsample.pipelines.tgate.policy import TGatePolicy


@dataclass(eq=False)
class GatedRun(Run):
    """A pass of the pipeline, and what is kept of it."""

    attention: dict[str, Kept] = field(default_factory=dict)  # by the modules' names
    arguments: dict[Branch, dict[int | str, Any]] = field(default_factory=dict)  # where branches are calls
    compiled: bool = False  # whether torch.compile has made something of a denoiser
    one: tuple[Branch, Any] | None = None  # the branch called for when one was run for all, and its output


@dataclass(eq=False)
class Gated:
    """Policy and counts, and for each thread its run and the evaluation that it is in."""

    policy: TGatePolicy
    pipe: Any
    keep: Branch
    counts: Counts = field(default_factory=Counts)
    samples: dict[Shape, Sample] = field(default_factory=dict)  # a call of each shape
    macs: dict[Shape, Macs] = field(default_factory=dict)  # what it costs, once that was asked for
    runs: Runs[GatedRun] = field(default_factory=lambda: Runs(GatedRun))
    under_way: UnderWay = field(default_factory=UnderWay)
    active: bool = True  # until the layers are taken off
    lock: threading.RLock = field(default_factory=threading.RLock)  # type: ignore[valid-type]  # of counts

    def begin(self, run: Run, branches: Branches) -> None:
        """Count a call of the pipeline. Raises ValueError where it cannot be gated."""
        self.policy.check_steps(run.steps_left)
        if Branch.OTHER in branches.copies or branches.perturbed_attention:
            raise ValueError(
                "guidance has other branches than a positive and a negative one (perturbed attention, an image), of "
                "which T-GATE would drop the wrong one: use GuidanceCut"
            )
        if self.policy.drop_guidance and not branches.guided and not branches.may_come:
            raise ValueError(
                "drop_guidance = True, but this call has no guidance to drop (neither copies in the batch nor calls "
                "that its loop names as branches): set it to False"
            )
        with self.lock:
            self.counts.calls += 1

    def forget(self) -> None:
        """The pipeline is done: free what was kept."""
        self.runs.current = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: no thread's run."""
        return {name: value for name, value in vars(self).items() if name not in ("runs", "lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, runs=Runs(GatedRun), lock=threading.RLock())
