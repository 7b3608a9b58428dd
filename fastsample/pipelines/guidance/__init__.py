"""Classifier-free guidance as pipelines have it: which branches a denoiser's call holds, and running some of them."""

from fastsample.pipelines.guidance.cut import CutSummary, GuidanceCut, GuidanceCutHandle

__all__ = ["CutSummary", "GuidanceCut", "GuidanceCutHandle"]
