"""T-GATE as a guider, for diffusers' modular pipelines, which call the denoiser once a branch."""

from __future__ import annotations

import contextlib

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from fastsample.pipelines.tgate.call import Evaluation, Kept
from fastsample.pipelines.tgate.gated import Gated
from fastsample.pipelines.tgate.hooks import AttentionHook
from fastsample.pipelines.tgate.policy import Decision, Guidance, TGatePolicy
from fastsample.pipelines.tgate.registration import register
from fastsample.pipelines.tgate.targets import attention_modules, check_class

BRANCHES = ("conditional", "unconditional")


class TGateGuider(ClassifierFreeGuidance):  # type: ignore[misc]
    """Classifier-free guidance up to `gate_step`, the conditional branch alone from there on, attention cached.

    `pipe.update_components(guider=TGateGuider(guidance_scale=7.5, gate_step=10))`; arguments as those of
    :class:`fastsample.TGate` and of diffusers' ClassifierFreeGuidance. The denoiser is hooked at the first step and
    free after the last. Raises ValueError for values out of range and joint attention.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        guidance_scale: float = 7.5,
        gate_step: int = 10,
        sp_interval: int = 1,
        fi_interval: int = 1,
        warm_up: int = 0,
        guidance_rescale: float = 0.0,
        use_original_formulation: bool = False,
    ) -> None:
        super().__init__(guidance_scale, guidance_rescale, use_original_formulation)
        self._gated = Gated(TGatePolicy(gate_step, sp_interval, fi_interval, warm_up), pipe=None, keep="positive")
        self._hooked = contextlib.ExitStack()  # takes the hooks off
        self._attention: list[AttentionHook] = []
        self._decision: Decision | None = None
        self._kept: Kept = {}

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Decide what the step does; called by the pipeline before each step."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._gated.policy.check_steps(num_inference_steps)
            self._free()
        self._decision = self._gated.policy.decide(step, Guidance.CALLS)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Hook the denoiser at the first call, and say what the branch that it runs next does."""
        if not self._attention:
            check_class(type(denoiser).__name__)
            for name, module in attention_modules(denoiser).items():
                self._attention.append(AttentionHook(self._gated, name, module))
                self._hooked.callback(register(module, self._attention[-1]))
            self._kept = {hook.name: {} for hook in self._attention}
        if self._decision is not None:
            self._gated.evaluation = Evaluation(self._decision, BRANCHES[self._count_prepared], self._kept)
        self._count_prepared += 1

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """After a branch attention does as ever; after the last one of the last step the hooks go."""
        self._gated.evaluation = None
        if self._step == self._num_inference_steps - 1 and self._count_prepared == self.num_conditions:
            self._free()

    def _free(self) -> None:
        """Take the hooks off and drop what was kept, that of a call which was aborted too."""
        self._hooked.close()
        self._attention, self._kept = [], {}
        self._gated.evaluation = None

    def _is_cfg_enabled(self) -> bool:
        return bool(super()._is_cfg_enabled()) and not (self._decision is not None and self._decision.one_branch)
