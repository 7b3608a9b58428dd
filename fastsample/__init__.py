"""fastsample: training-free fast sampling for Hugging Face diffusers.

    import fastsample
    pipe.scheduler = fastsample.HeavyBallScheduler.from_config(pipe.scheduler.config, timestep_grid="quadratic")

The public names are imported on first use, so that `import fastsample` needs neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastsample.version import __version__

_HOME = {
    "NoiseSchedule": "fastsample.schedules",
    "time_grid": "fastsample.schedules",
    "build_table": "fastsample.solvers",
    "available_solvers": "fastsample.solvers.registry:available",
    "Table": "fastsample.tables",
    "integrate": "fastsample.sampling",
    "integrate_adaptive": "fastsample.sampling",
    "GraphedLoop": "fastsample.sampling",
    "graphs": "fastsample.pipelines.graphs",
    "integrate_parallel": "fastsample.fixed_point",
    "ParallelSampler": "fastsample.pipelines.parallel",
    "parallelise": "fastsample.pipelines.parallel",
    "jacobi_decode": "fastsample.fixed_point",
    "Ledger": "fastsample.sampling",
    "create_scheduler": "fastsample.schedulers",
    "load_pipeline": "fastsample.pipelines.swap",
    "load_preset": "fastsample.tuning",
    "tune": "fastsample.tuning",
    "Preset": "fastsample.tables.preset",
    "Recipe": "fastsample.pipelines.recipe",
    "composition": "fastsample.pipelines.composition",
    "recommend": "fastsample.pipelines.recommend",
    "speed_up": "fastsample.pipelines.recommend",
    "scheduler_from_name": "fastsample.schedulers",
    "set_scheduler": "fastsample.pipelines.swap",
    "invert": "fastsample.pipelines.inversion",
    "preview_callback": "fastsample.pipelines.preview",
    "AcceleratedScheduler": "fastsample.schedulers",
    "DEISScheduler": "fastsample.schedulers",
    "IPNDMScheduler": "fastsample.schedulers",
    "UniPCScheduler": "fastsample.schedulers",
    "DDIMInverseScheduler": "fastsample.schedulers",
    "DDIMScheduler": "fastsample.schedulers",
    "LCMScheduler": "fastsample.schedulers",
    "TCDScheduler": "fastsample.schedulers",
    "DPMSolverInverseScheduler": "fastsample.schedulers",
    "DPMSolverScheduler": "fastsample.schedulers",
    "GHVBScheduler": "fastsample.schedulers",
    "HeavyBallScheduler": "fastsample.schedulers",
    "EntropyBoundedScheduler": "fastsample.decoding.schedulers",
    "CheckedScheduler": "fastsample.decoding.schedulers",
    "RiskScheduler": "fastsample.decoding.schedulers",
    "EntropyScheduler": "fastsample.decoding.schedulers",
    "FactorScheduler": "fastsample.decoding.schedulers",
    "HierarchyScheduler": "fastsample.decoding.schedulers",
    "MarginScheduler": "fastsample.decoding.schedulers",
    "ProphetScheduler": "fastsample.decoding.schedulers",
    "ThresholdScheduler": "fastsample.decoding.schedulers",
    "GuidanceCut": "fastsample.pipelines.guidance",
    "TGate": "fastsample.pipelines.tgate",
    "TGateGuider": "fastsample.caching.guider",  # saved pipelines name this module, which has to be imported
    "decode_masked": "fastsample.decoding",
    "plan_decoding": "fastsample.decoding",
    "WINO": "fastsample.decoding",
    "Risk": "fastsample.decoding",
    "PUNT": "fastsample.decoding",
    "KLASS": "fastsample.decoding",
    "Credit": "fastsample.decoding",
    "Checked": "fastsample.decoding",
    "MaskedDiffusionPipeline": "fastsample.decoding.pipeline",
    "After": "fastsample.decoding",
    "Caching": "fastsample.decoding",
    "Entropy": "fastsample.decoding",
    "EntropyBounded": "fastsample.decoding",
    "Factor": "fastsample.decoding",
    "Hierarchy": "fastsample.decoding",
    "LatentRefinement": "fastsample.decoding",
    "LowConfidence": "fastsample.decoding",
    "Margin": "fastsample.decoding",
    "Origin": "fastsample.decoding",
    "Prophet": "fastsample.decoding",
    "Random": "fastsample.decoding",
    "Threshold": "fastsample.decoding",
    "anchor": "fastsample.decoding",
    "load_causal_model": "fastsample.demo.causal.loading",
    "load_language_model": "fastsample.demo.language.loading",
    "TarFlowModel": "fastsample.tarflow",
    "TarFlowPipeline": "fastsample.tarflow",
    "GaussianMixture": "fastsample.demo.mixture",
}

__all__ = ["__version__", *_HOME]

if TYPE_CHECKING:
    from fastsample.decoding import KLASS as KLASS
    from fastsample.decoding import PUNT as PUNT
    from fastsample.decoding import WINO as WINO
    from fastsample.decoding import After as After
    from fastsample.decoding import Caching as Caching
    from fastsample.decoding import Checked as Checked
    from fastsample.decoding import Credit as Credit
    from fastsample.decoding import Entropy as Entropy
    from fastsample.decoding import EntropyBounded as EntropyBounded
    from fastsample.decoding import Factor as Factor
    from fastsample.decoding import Hierarchy as Hierarchy
    from fastsample.decoding import LatentRefinement as LatentRefinement
    from fastsample.decoding import LowConfidence as LowConfidence
    from fastsample.decoding import Margin as Margin
    from fastsample.decoding import Origin as Origin
    from fastsample.decoding import Prophet as Prophet
    from fastsample.decoding import Random as Random
    from fastsample.decoding import Risk as Risk
    from fastsample.decoding import Threshold as Threshold
    from fastsample.decoding import anchor as anchor
    from fastsample.decoding import decode_masked as decode_masked
    from fastsample.decoding import plan_decoding as plan_decoding
    from fastsample.decoding.pipeline import MaskedDiffusionPipeline as MaskedDiffusionPipeline
    from fastsample.decoding.schedulers import CheckedScheduler as CheckedScheduler
    from fastsample.decoding.schedulers import EntropyBoundedScheduler as EntropyBoundedScheduler
    from fastsample.decoding.schedulers import EntropyScheduler as EntropyScheduler
    from fastsample.decoding.schedulers import FactorScheduler as FactorScheduler
    from fastsample.decoding.schedulers import HierarchyScheduler as HierarchyScheduler
    from fastsample.decoding.schedulers import MarginScheduler as MarginScheduler
    from fastsample.decoding.schedulers import ProphetScheduler as ProphetScheduler
    from fastsample.decoding.schedulers import RiskScheduler as RiskScheduler
    from fastsample.decoding.schedulers import ThresholdScheduler as ThresholdScheduler
    from fastsample.demo.causal.loading import load_causal_model as load_causal_model
    from fastsample.demo.language.loading import load_language_model as load_language_model
    from fastsample.demo.mixture import GaussianMixture as GaussianMixture
    from fastsample.fixed_point import integrate_parallel as integrate_parallel
    from fastsample.fixed_point import jacobi_decode as jacobi_decode
    from fastsample.pipelines.composition import composition as composition
    from fastsample.pipelines.graphs import graphs as graphs
    from fastsample.pipelines.guidance import GuidanceCut as GuidanceCut
    from fastsample.pipelines.inversion import invert as invert
    from fastsample.pipelines.parallel import ParallelSampler as ParallelSampler
    from fastsample.pipelines.parallel import parallelise as parallelise
    from fastsample.pipelines.preview import preview_callback as preview_callback
    from fastsample.pipelines.recipe import Recipe as Recipe
    from fastsample.pipelines.recommend import recommend as recommend
    from fastsample.pipelines.recommend import speed_up as speed_up
    from fastsample.pipelines.swap import load_pipeline as load_pipeline
    from fastsample.pipelines.swap import set_scheduler as set_scheduler
    from fastsample.pipelines.tgate import TGate as TGate
    from fastsample.pipelines.tgate.guider import TGateGuider as TGateGuider
    from fastsample.sampling import GraphedLoop as GraphedLoop
    from fastsample.sampling import Ledger as Ledger
    from fastsample.sampling import integrate as integrate
    from fastsample.sampling import integrate_adaptive as integrate_adaptive
    from fastsample.schedulers import AcceleratedScheduler as AcceleratedScheduler
    from fastsample.schedulers import DDIMInverseScheduler as DDIMInverseScheduler
    from fastsample.schedulers import DDIMScheduler as DDIMScheduler
    from fastsample.schedulers import DEISScheduler as DEISScheduler
    from fastsample.schedulers import DPMSolverInverseScheduler as DPMSolverInverseScheduler
    from fastsample.schedulers import DPMSolverScheduler as DPMSolverScheduler
    from fastsample.schedulers import GHVBScheduler as GHVBScheduler
    from fastsample.schedulers import HeavyBallScheduler as HeavyBallScheduler
    from fastsample.schedulers import IPNDMScheduler as IPNDMScheduler
    from fastsample.schedulers import LCMScheduler as LCMScheduler
    from fastsample.schedulers import TCDScheduler as TCDScheduler
    from fastsample.schedulers import UniPCScheduler as UniPCScheduler
    from fastsample.schedulers import create_scheduler as create_scheduler
    from fastsample.schedulers import scheduler_from_name as scheduler_from_name
    from fastsample.schedules import NoiseSchedule as NoiseSchedule
    from fastsample.schedules import time_grid as time_grid
    from fastsample.solvers import build_table as build_table
    from fastsample.solvers.registry import available as available_solvers  # noqa: F401
    from fastsample.tables import Table as Table
    from fastsample.tables.preset import Preset as Preset
    from fastsample.tarflow import TarFlowModel as TarFlowModel
    from fastsample.tarflow import TarFlowPipeline as TarFlowPipeline
    from fastsample.tuning import load_preset as load_preset
    from fastsample.tuning import tune as tune


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastsample' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
