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
UNGUIDED = Setting("unipc", "log-snr")
STRONG, FEW = 7.0, 10
"""From this guidance scale on, at no more than so many steps, VP models need more damping than VP's."""
DAMPED = Setting("ghvb", "karras", {"order": 1, "beta": 0.8})
FLOW = Setting("ghvb", "shifted-quadratic", {"order": 4, "beta": 0.7, "stable_guidance": 3.0})
RECOMMENDED = {"vp": VP, "edm": VP, "flow": FLOW}
"""By the kind of the noise schedule. Measured: benchmarks/text_to_image_grids, benchmarks/flow_text_to_image."""


def recommended(kind: str, guidance: float | None = None, steps: int | None = None) -> Setting:
    """The setting for a `kind` of model by what is known of the `guidance` and the `steps` that are sampled with.

    On flow-matching models it is stable under the guidance; on the others it is a high order without guidance, and a
    low one under much of it in few steps.
    """
    setting = RECOMMENDED[kind]
    if guidance is None:
        return setting
    if "stable_guidance" in setting.options:
        return replace(setting, options={**setting.options, "stable_guidance": max(float(guidance), 1.0)})
    if guidance <= 1:
        return UNGUIDED
    return DAMPED if guidance >= STRONG and steps is not None and steps <= FEW else setting
