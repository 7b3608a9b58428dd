"""The setting that the documents recommend for each kind of model, in one place.

setting = recommended(NoiseSchedule.from_config(pipe.scheduler.config).kind, guidance=3.0)
pipe.scheduler = create_scheduler(setting.solver, pipe.scheduler.config, grid=setting.grid, **setting.options)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A registered solver, its options, and a time grid by name: the arguments of `create_scheduler`."""

    solver: str
    grid: str
    options: Mapping[str, Any] = field(default_factory=dict)


VP = Setting("hb-dpmpp-2m", "quadratic")
FLOW = Setting("ghvb", "shifted-quadratic", {"order": 4, "beta": 0.7, "stable_guidance": 3.0})
RECOMMENDED = {"vp": VP, "edm": VP, "flow": FLOW}
"""By the kind of the noise schedule. Measured: benchmarks/text_to_image_grids, benchmarks/flow_text_to_image."""


def recommended(kind: str, guidance: float | None = None) -> Setting:
    """The setting for a `kind` of model, on flow-matching ones stable under the `guidance` that is sampled with."""
    setting = RECOMMENDED[kind]
    if guidance is None or "stable_guidance" not in setting.options:
        return setting
    return replace(setting, options={**setting.options, "stable_guidance": max(float(guidance), 1.0)})
