"""Momentum samplers as diffusers schedulers (Wizadwongsa et al. 2023, arXiv:2307.11118)."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import configured
from fastsample.solvers.registry import check_choice


@configured(order=4, beta=0.8)
class GHVBScheduler(TableScheduler):
    """Generalised heavy ball of `order` 1-5 with momentum `beta` in (0, 1]; beta = 1 is Adams-Bashforth (PLMS).

    A "momentum number" of 3.8 means order 4 with beta 0.8. Recommended on flow-matching models, with
    `timestep_grid="shifted-quadratic"`, beta=0.7 and `stable_guidance` the guidance scale: see
    :data:`fastsample.names.recommended.FLOW`. Without these it has orders that are stable up to guidance 7 there.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        # `order` is the config's here; the class attribute is what pipelines read, evaluations a step
        return "ghvb", {"order": self.config["order"], "beta": self.config.beta}


@configured(base="dpmpp-2m", adams_order=2, beta=0.8, nesterov=False)
class HeavyBallScheduler(TableScheduler):
    """Heavy-ball momentum `beta` in (0, 1] on `base`: "dpmpp-2m" (DPM-Solver++ 2M) or "adams" (Adams-Bashforth).

    `adams_order` 1-4 and `nesterov` (Nesterov's form of momentum) belong to base "adams". On flow-matching models the
    orders are those that are stable up to guidance 7, or up to the config's `stable_guidance`.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        config = self.config
        check_choice("base", config.base, ("dpmpp-2m", "adams"))
        if config.base == "dpmpp-2m":
            if config.nesterov:
                raise ValueError("nesterov = True needs base = 'adams'; set nesterov to False or base to 'adams'")
            return "hb-dpmpp-2m", {"beta": config.beta}
        check_choice("adams_order", config.adams_order, (1, 2, 3, 4))
        return "nesterov" if config.nesterov else "hb", {"order": config.adams_order, "beta": config.beta}
