"""Caches as hooks on a pipeline's denoiser."""

from fastsample.caching.policy import Action, StepPlan, TGatePolicy
from fastsample.caching.tgate import PRESETS, TGate, TGateHandle, TGateSummary

__all__ = ["PRESETS", "Action", "StepPlan", "TGate", "TGateHandle", "TGatePolicy", "TGateSummary"]
