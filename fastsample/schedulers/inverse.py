"""Schedulers that go from clean to noisy: what a sampler would have started from."""

from __future__ import annotations

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.config import configured
from fastsample.schedulers.ddim import DDIMScheduler
from fastsample.schedulers.dpm_solver import DPMSolverScheduler
from fastsample.schedulers.grids.rising import Rise
from fastsample.schedulers.solver import SolverScheduler
from fastsample.solvers.registry import get_solver


@configured(clip_sample=False, clip_sample_range=1.0)
class DDIMInverseScheduler(DDIMScheduler):
    """DDIM inversion (arXiv:2010.02502, eq. 14, integrated towards noise); on flow-matching models, Euler's method.

    As diffusers' DDIMInverseScheduler it begins at sigma = 0 and tells the network the time of the point that it goes
    to, which on any grid are the times of the run that it inverts, the other way round. `set_timesteps` takes what
    that run takes, `sigmas` and `timesteps` from noisy to clean.
    """

    _rise: Rise | None = "from clean"


@configured(
    algorithm_type="dpmsolver++",
    solver_order=2,
    solver_type="midpoint",
    singlestep=False,
    variant="released",
    eta=1.0,
    euler_at_final=False,
)
class DPMSolverInverseScheduler(DPMSolverScheduler):
    """DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (2211.01095) from clean to noisy, orders 1 to 3.

    As diffusers' DPMSolverMultistepInverseScheduler it takes the sample for one at the least noisy time of training.
    "dpmsolver" loses less on the way: its noise predictions change little where steps begin. The SDE forms draw
    noise, which has no way back: ValueError.
    """

    _rise: Rise | None = "from noise"


@configured(solver_name="ddim", solver_options=None)
class SolverInverseScheduler(SolverScheduler):
    """The solver registered as `solver_name`, with `solver_options` of its own, from clean to noisy.

    Of order 1 as :class:`DDIMInverseScheduler`, else as :class:`DPMSolverInverseScheduler`. Raises ValueError for
    solvers that draw noise.
    """

    @property
    def _rise(self) -> Rise | None:  # type: ignore[override]
        return "from clean" if get_solver(self.config.solver_name).order == 1 else "from noise"
