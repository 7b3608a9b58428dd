"""The setting that the documents recommend for each kind of model, in one place.

kind = NoiseSchedule.from_config(pipe.scheduler.config).kind
setting = RECOMMENDED[kind]
pipe.scheduler = create_scheduler(setting.solver, pipe.scheduler.config, grid=setting.grid, **setting.options)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Setting:
    """A registered solver, its options, and a time grid by name: the arguments of `create_scheduler`."""

    solver: str
    grid: str
    options: Mapping[str, Any] = field(default_factory=dict)


VP = Setting("hb-dpmpp-2m", "quadratic")
FLOW = Setting("ghvb", "quadratic", {"order": 2})
RECOMMENDED = {"vp": VP, "edm": VP, "flow": FLOW}
"""By the kind of the noise schedule. Measured: benchmarks/text_to_image_grids, benchmarks/flow_text_to_image."""
