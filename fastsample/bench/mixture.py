"""Solver error on an analytic mixture: RMS to the exact ODE's solution against model evaluations, per time grid."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastsample.bench.cases import Arm
from fastsample.demo.mixture import GaussianMixture
from fastsample.names.peers import peer_class
from fastsample.sampling import integrate
from fastsample.schedules import NoiseSchedule, time_grid
from fastsample.solvers import build_table_on_nodes, get_solver

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's noise schedule."""
COMPARED_GRIDS = ("linspace", "quadratic", "karras", "log-snr")
PEER_FLAGS: tuple[dict[str, bool], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)


@dataclass
class MixtureProblem:
    """`points` samples at the noisiest timestep, and where the exact ODE takes them by the least noisy one."""

    mixture: GaussianMixture
    points: int = 512
    seed: int = 0
    schedule: NoiseSchedule = field(default_factory=lambda: NoiseSchedule.from_config(CONFIG))

    def __post_init__(self) -> None:
        start, end = self.schedule.noise_time, self.schedule.first_time
        shape = (self.points, self.mixture.means.shape[1])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        data = self.mixture.sample(self.points, self.seed)
        self.start = float(self.schedule.alpha(start)) * data + float(self.schedule.sigma(start)) * noise
        self.exact = self.mixture.reference(self.schedule, self.start, start, end)
        self.model: Callable[[Tensor, float], Tensor] = self.mixture.model(self.schedule)

    def errors(self, arm: Arm, evaluations: int) -> Iterator[tuple[str, float]]:
        """The grid's name and the RMS error, for each grid on which `arm` makes `evaluations` model calls."""
        if arm.peer:
            for flags in PEER_FLAGS:
                yield "+".join(flags) or "linspace", self._peer_error(arm, evaluations, flags)
            return
        for grid in COMPARED_GRIDS:
            error = self._error(arm, evaluations, grid)
            if error is not None:
                yield grid, error

    def _error(self, arm: Arm, evaluations: int, grid: str) -> float | None:
        """None where the solver cannot make just that many calls."""
        solver = get_solver(arm.name)
        steps, rest = divmod(evaluations, solver.evaluations if solver.whole_steps else 1)
        if rest:
            return None
        times = time_grid(grid, self.schedule, steps, final="sigma_min")
        if len(times) == steps:  # the grid ends where it is to end, which is no evaluation
            times = time_grid(grid, self.schedule, steps + 1, final="sigma_min")
        table = build_table_on_nodes(
            arm.name,
            self.schedule.nodes(times),
            schedule=self.schedule if solver.needs_schedule else None,
            lower_final=solver.lower_final,  # as our schedulers and diffusers' do
            **dict(arm.options),
        )
        assert table.nfe == evaluations
        return self._rms(integrate(table, self.model, self.start))

    def _peer_error(self, arm: Arm, evaluations: int, flags: dict[str, bool]) -> float:
        """A diffusers class at its own rounded timesteps, ending at the least trained sigma."""
        config: dict[str, Any] = {**CONFIG, **flags, **dict(arm.options), "final_sigmas_type": "sigma_min"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = peer_class(arm.name).from_config(config)
        scheduler.set_timesteps(evaluations)
        x = self.start
        for t in scheduler.timesteps:
            x = scheduler.step(self.model(x, float(t)), t, x, return_dict=False)[0]
        return self._rms(x)

    def _rms(self, result: Tensor) -> float:
        error = float((result.double() - self.exact).square().mean().sqrt())
        return error if math.isfinite(error) else math.inf
