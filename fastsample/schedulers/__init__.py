"""Drop-in diffusers schedulers. The module of each class is written into saved pipelines: it is final."""

from fastsample.schedulers.adams import AcceleratedScheduler, DEISScheduler, IPNDMScheduler
from fastsample.schedulers.ddim import DDIMScheduler
from fastsample.schedulers.dpm_solver import DPMSolverScheduler
from fastsample.schedulers.momentum import GHVBScheduler, HeavyBallScheduler
from fastsample.schedulers.solver import SolverScheduler, create_scheduler, scheduler_from_name
from fastsample.schedulers.unipc import UniPCScheduler

__all__ = [
    "AcceleratedScheduler",
    "DDIMScheduler",
    "DEISScheduler",
    "DPMSolverScheduler",
    "GHVBScheduler",
    "HeavyBallScheduler",
    "IPNDMScheduler",
    "SolverScheduler",
    "UniPCScheduler",
    "create_scheduler",
    "scheduler_from_name",
]
