"""The setting that the documents recommend for each family of models, in one place.

setting = recommended(pipe.scheduler.config)
pipe.scheduler = create_scheduler(setting.solver, pipe.scheduler.config, grid=setting.grid, **setting.options)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastsample.schedules.config import is_flow


@dataclass(frozen=True)
class Setting:
    """A registered solver, its options, and a time grid by name: the arguments of `create_scheduler`."""

    solver: str
    grid: str
    options: Mapping[str, Any] = field(default_factory=dict)


VP = Setting("hb-dpmpp-2m", "quadratic")
"""Of models with discrete betas, and of EDM's: benchmarks/text_to_image_grids."""
FLOW = Setting("ghvb", "quadratic", {"order": 2})
"""Of flow-matching models: benchmarks/flow_text_to_image."""


def recommended(config: Mapping[str, Any]) -> Setting:
    """The setting for the model that `config`, any diffusers scheduler's, describes."""
    return FLOW if is_flow(config) else VP
