"""Caches as hooks on a pipeline's denoiser."""

from fastsample.pipelines.tgate.convergence import Convergence
from fastsample.pipelines.tgate.counts import TGateSummary
from fastsample.pipelines.tgate.handle import PRESETS, TGate, TGateHandle
from fastsample.pipelines.tgate.policy import Action, Decision, Guidance, TGatePolicy

__all__ = [
    "PRESETS",
    "Action",
    "Convergence",
    "Decision",
    "Guidance",
    "TGate",
    "TGateHandle",
    "TGatePolicy",
    "TGateSummary",
]
