"""The guider by the path that saved pipelines name it by."""

from fastsample.pipelines.tgate.guider import TGateGuider

__all__ = ["TGateGuider"]
