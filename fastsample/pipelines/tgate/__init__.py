"""Caches as hooks on a pipeline's denoiser."""

from fastsample.pipelines.tgate.convergence import Convergence
from fastsample.pipelines.tgate.handle import PRESETS, TGate, TGateHandle, TGateSummary
from fastsample.pipelines.tgate.policy import Action, StepPlan, TGatePolicy

__all__ = ["PRESETS", "Action", "Convergence", "StepPlan", "TGate", "TGateHandle", "TGatePolicy", "TGateSummary"]
