"""DEIS, iPNDM and the accelerated samplers as diffusers schedulers."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import configured
from fastsample.solvers.registry import check_choice


@configured(solver_order=3)
class DEISScheduler(TableScheduler):
    """DEIS (arXiv:2204.13902) in log(sigma / alpha), of `solver_order` 1-4.

    On flow-matching models the orders are those that are stable up to guidance 7, or the config's `stable_guidance`.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        check_choice("solver_order", self.config.solver_order, (1, 2, 3, 4))
        return "deis", {"order": self.config.solver_order}


@configured(solver_order=4)
class IPNDMScheduler(TableScheduler):
    """iPNDM (arXiv:2202.09778, 2204.13902): Adams-Bashforth with fixed weights, of `solver_order` 1-4.

    On flow-matching models the orders are those that are stable up to guidance 7, or the config's `stable_guidance`.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        check_choice("solver_order", self.config.solver_order, (1, 2, 3, 4))
        return "ipndm", {"order": self.config.solver_order}


@configured(stochastic=False)
class AcceleratedScheduler(TableScheduler):
    """The accelerated ODE sampler of arXiv:2403.03852, or with `stochastic` its SDE sampler (VP models only).

    On flow-matching models its order is what is stable up to guidance 7, or the config's `stable_guidance`.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        return "accelerated-sde" if self.config.stochastic else "accelerated", {}
