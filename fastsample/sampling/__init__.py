"""Running tables over models: torch, no diffusers."""

from fastsample.sampling.adaptive import AdaptiveResult, integrate_adaptive
from fastsample.sampling.backend import combine
from fastsample.sampling.executor import StepState, apply_step, integrate
from fastsample.sampling.ledger import Ledger, count
from fastsample.sampling.noise import draw_noise

__all__ = [
    "AdaptiveResult",
    "Ledger",
    "StepState",
    "apply_step",
    "combine",
    "count",
    "draw_noise",
    "integrate",
    "integrate_adaptive",
]
