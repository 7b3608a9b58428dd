"""UniPC as a diffusers scheduler (Zhao et al. 2023, arXiv:2302.04867)."""

from __future__ import annotations

from typing import Any

from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401  diffusers looks it up in this module

from fastsample.schedulers.base import TableScheduler
from fastsample.schedulers.config import configured
from fastsample.solvers.registry import check_choice


@configured(solver_order=2, solver_type="bh2", predict_x0=True, disable_corrector=None)
class UniPCScheduler(TableScheduler):
    """UniPC of `solver_order` 1-3; config keys are those of diffusers' UniPCMultistepScheduler.

    `solver_type` "bh1" or "bh2" is the paper's B(h), `predict_x0` its form on data predictions, and
    `disable_corrector` the steps that go without a corrector. On flow-matching models the orders are those that are
    stable up to guidance 7, or up to the config's `stable_guidance`, but for configs of diffusers' own class.
    """

    def solver(self) -> tuple[str, dict[str, Any]]:
        config = self.config
        check_choice("solver_order", config.solver_order, (1, 2, 3))
        # Names of other families' types, which a swapped config brings along; diffusers reads them as bh2.
        solver_type = "bh2" if config.solver_type in ("midpoint", "heun", "logrho") else config.solver_type
        options = {
            "order": config.solver_order,
            "solver_type": solver_type,
            "disable_corrector": () if config.disable_corrector is None else config.disable_corrector,
        }
        return "unipc" if config.predict_x0 else "unipc-noise", options
