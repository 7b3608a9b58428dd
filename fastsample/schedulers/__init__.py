"""Drop-in diffusers schedulers. The module of each class is written into saved pipelines: it is final.

The classes are imported on first use, so that the grids here need neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "AcceleratedScheduler": "adams",
    "DDIMInverseScheduler": "inverse",
    "DDIMScheduler": "ddim",
    "DEISScheduler": "adams",
    "DPMSolverInverseScheduler": "inverse",
    "DPMSolverScheduler": "dpm_solver",
    "GHVBScheduler": "momentum",
    "HeavyBallScheduler": "momentum",
    "IPNDMScheduler": "adams",
    "LCMScheduler": "consistency",
    "SolverInverseScheduler": "inverse",
    "SolverScheduler": "solver",
    "TCDScheduler": "consistency",
    "UniPCScheduler": "unipc",
    "create_scheduler": "solver",
    "scheduler_from_name": "solver",
}

__all__ = list(_HOME)

if TYPE_CHECKING:
    from fastsample.schedulers.adams import AcceleratedScheduler as AcceleratedScheduler
    from fastsample.schedulers.adams import DEISScheduler as DEISScheduler
    from fastsample.schedulers.adams import IPNDMScheduler as IPNDMScheduler
    from fastsample.schedulers.consistency import LCMScheduler as LCMScheduler
    from fastsample.schedulers.consistency import TCDScheduler as TCDScheduler
    from fastsample.schedulers.ddim import DDIMScheduler as DDIMScheduler
    from fastsample.schedulers.dpm_solver import DPMSolverScheduler as DPMSolverScheduler
    from fastsample.schedulers.inverse import DDIMInverseScheduler as DDIMInverseScheduler
    from fastsample.schedulers.inverse import DPMSolverInverseScheduler as DPMSolverInverseScheduler
    from fastsample.schedulers.inverse import SolverInverseScheduler as SolverInverseScheduler
    from fastsample.schedulers.momentum import GHVBScheduler as GHVBScheduler
    from fastsample.schedulers.momentum import HeavyBallScheduler as HeavyBallScheduler
    from fastsample.schedulers.solver import SolverScheduler as SolverScheduler
    from fastsample.schedulers.solver import create_scheduler as create_scheduler
    from fastsample.schedulers.solver import scheduler_from_name as scheduler_from_name
    from fastsample.schedulers.unipc import UniPCScheduler as UniPCScheduler


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastsample.schedulers' has no attribute {name!r}")
    # all of them at once: diffusers loads a saved scheduler only where its module has been imported
    modules = {home: importlib.import_module(f"fastsample.schedulers.{home}") for home in _HOME.values()}
    globals().update({known: getattr(modules[home], known) for known, home in _HOME.items()})
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
