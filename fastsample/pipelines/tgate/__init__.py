"""T-GATE around a pipeline's denoisers and their attention."""

from fastsample.pipelines.tgate.convergence import Convergence
from fastsample.pipelines.tgate.handle import PRESETS, TGate, TGateHandle
from fastsample.pipelines.tgate.policy import Action, Decision, Guidance, TGatePolicy
from fastsample.pipelines.tgate.summary import TGateSummary

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
