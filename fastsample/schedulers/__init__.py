"""Drop-in diffusers schedulers. The module of each class is written into saved pipelines: it is final.

The classes are imported on first use, so that the grids here need neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "AcceleratedScheduler": "adams",
    "DDIMScheduler": "ddim",
    "DEISScheduler": "adams",
    "DPMSolverScheduler": "dpm_solver",
    "GHVBScheduler": "momentum",
    "HeavyBallScheduler": "momentum",
    "IPNDMScheduler": "adams",
    "SolverScheduler": "solver",
    "UniPCScheduler": "unipc",
    "create_scheduler": "solver",
    "scheduler_from_name": "solver",
}

__all__ = list(_HOME)

if TYPE_CHECKING:
    from fastsample.schedulers.adams import AcceleratedScheduler as AcceleratedScheduler
    from fastsample.schedulers.adams import DEISScheduler as DEISScheduler
    from fastsample.schedulers.adams import IPNDMScheduler as IPNDMScheduler
    from fastsample.schedulers.ddim import DDIMScheduler as DDIMScheduler
    from fastsample.schedulers.dpm_solver import DPMSolverScheduler as DPMSolverScheduler
    from fastsample.schedulers.momentum import GHVBScheduler as GHVBScheduler
    from fastsample.schedulers.momentum import HeavyBallScheduler as HeavyBallScheduler
    from fastsample.schedulers.solver import SolverScheduler as SolverScheduler
    from fastsample.schedulers.solver import create_scheduler as create_scheduler
    from fastsample.schedulers.solver import scheduler_from_name as scheduler_from_name
    from fastsample.schedulers.unipc import UniPCScheduler as UniPCScheduler


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastsample.schedulers' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fastsample.schedulers.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
