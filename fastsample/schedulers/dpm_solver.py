"""DPM-Solver and DPM-Solver++ as a diffusers scheduler."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import configured
from fastsample.solvers.dpm_multistep import VARIANTS
from fastsample.solvers.dpm_sde import NOISE_TYPES
from fastsample.solvers.exponential import SOLVER_TYPES
from fastsample.solvers.registry import check_choice, check_eta

ALGORITHMS = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
OF_OTHERS = {"deis": "dpmsolver++", "data_prediction": "dpmsolver++", "noise_prediction": "dpmsolver"}
"""What the algorithm types of DEIS, as in diffusers, and of SA-Solver become where their config is handed over."""


@configured(
    algorithm_type="dpmsolver++",
    solver_order=2,
    solver_type="midpoint",
    singlestep=False,
    variant="released",
    eta=1.0,
    euler_at_final=False,
)
class DPMSolverScheduler(TableScheduler):
    """DPM-Solver (arXiv:2206.00927) and DPM-Solver++ (2211.01095), multistep or single-step, ODE or SDE.

    Config keys are those of diffusers' DPMSolverMultistepScheduler. `singlestep=True` is its single-step
    sibling: `num_inference_steps` counts model evaluations, and the stages are points of the grid.
    `variant="exact"` makes order 3 truly third order (the released formula is second order). `eta` in [0, 1]
    scales the noise of the SDE forms, `solver_order` 1-3 ("sde-dpmsolver": 1-2).

    On flow-matching models a multistep's orders are those that are stable up to guidance 7, or up to the config's
    `stable_guidance`, but for configs of diffusers' own class.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        config = self.config
        algorithm = str(OF_OTHERS.get(config.algorithm_type, config.algorithm_type))
        check_choice("algorithm_type", algorithm, ALGORITHMS)
        stochastic, order = algorithm.startswith("sde-"), config.solver_order
        check_choice("variant", config.variant, VARIANTS)
        check_eta(config.eta)
        check_choice("solver_order", order, (1, 2) if algorithm == "sde-dpmsolver" else (1, 2, 3))
        family = "dpmpp" if algorithm.endswith("++") else "dpm"
        # UniPC's and DEIS' types, which diffusers also reads as midpoint.
        solver_type = "midpoint" if config.solver_type in ("bh1", "bh2", "logrho") else config.solver_type
        noisy = algorithm == "sde-dpmsolver"
        check_choice(
            "solver_type", solver_type, NOISE_TYPES if noisy else SOLVER_TYPES
        )  # at order 1 too, which has none
        options = {} if order == 1 and not noisy else {"solver_type": solver_type}
        if config.singlestep and not stochastic and order > 1:
            return f"{family}-{order}s", options
        options |= {"euler_at_final": config.euler_at_final}
        if order == 3:
            options |= {"variant": config.variant}
        if stochastic:
            return f"{family}-1-sde" if order == 1 else f"{family}-{order}m-sde", options | {"eta": config.eta}
        return ("ddim", {}) if order == 1 else (f"{family}-{order}m", options)
