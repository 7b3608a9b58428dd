"""Which guiders of modular pipelines do the same in every step, so that one pass may serve many steps."""

from __future__ import annotations

from typing import Any

from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    ClassifierFreeGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.guiders.guider_utils import BaseGuidance

STEPLESS = (
    AdaptiveProjectedGuidance,  # without momentum
    AutoGuidance,
    ClassifierFreeGuidance,
    MagnitudeAwareGuidance,
    TangentialClassifierFreeGuidance,
)
"""Those that do so in their range of steps."""


def check_guider(guider: Any) -> None:
    """Raise ValueError where a guider needs the number of the step, which in a loop of sweeps is not told."""
    if not isinstance(guider, BaseGuidance):
        return
    name = type(guider).__name__
    if (guider._start, guider._stop) != (0.0, 1.0):
        raise ValueError(f"pipe.guider = {name} acts on some steps only: use start=0.0, stop=1.0")
    if type(guider) not in STEPLESS or getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
        raise ValueError(
            f"pipe.guider = {name} may act on some steps only, or keep something from one to the next: use "
            "ClassifierFreeGuidance"
        )
