"""Running tables over models: torch, no diffusers."""

from fastsample.sampling.adaptive import AdaptiveResult, integrate_adaptive
from fastsample.sampling.backend import combine
from fastsample.sampling.executor import Runner, integrate, run_step
from fastsample.sampling.graphs import GraphedLoop
from fastsample.sampling.ledger import Ledger
from fastsample.sampling.noise import draw_noise

__all__ = [
    "AdaptiveResult",
    "GraphedLoop",
    "Ledger",
    "Runner",
    "combine",
    "draw_noise",
    "integrate",
    "integrate_adaptive",
    "run_step",
]
