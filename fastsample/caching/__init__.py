"""Caches as hooks on a pipeline's denoiser."""

from fastsample.caching.convergence import Convergence
from fastsample.caching.policy import Action, StepPlan, TGatePolicy
from fastsample.caching.tgate import PRESETS, TGate, TGateHandle, TGateSummary

__all__ = ["PRESETS", "Action", "Convergence", "StepPlan", "TGate", "TGateHandle", "TGatePolicy", "TGateSummary"]
