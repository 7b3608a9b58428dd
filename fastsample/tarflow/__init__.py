"""TarFlow: normalizing flows of autoregressive transformer blocks, sampled in parallel."""

from __future__ import annotations

from fastsample.tarflow.decode import DecodeReport as DecodeReport
from fastsample.tarflow.model import TarFlowModel as TarFlowModel
from fastsample.tarflow.original import load_original as load_original
from fastsample.tarflow.pipeline import TarFlowPipeline as TarFlowPipeline
from fastsample.tarflow.planner import plan as plan
from fastsample.tarflow.plans import BlockPlan as BlockPlan
from fastsample.tarflow.plans import Plan as Plan
