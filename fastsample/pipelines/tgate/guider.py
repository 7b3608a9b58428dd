"""T-GATE as a guider, for diffusers' modular pipelines, which call the denoiser once a branch."""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from fastsample.pipelines.denoisers import attention_modules, check_class
from fastsample.pipelines.tgate.handle import NAME, remove_hook
from fastsample.pipelines.tgate.hooks import AttentionHook, Gate
from fastsample.pipelines.tgate.policy import TGatePolicy

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
        self._gate = Gate(TGatePolicy(gate_step, sp_interval, fi_interval, warm_up), pipe=None, keep="positive")
        self._gate.guided = self._gate.two_calls = True

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Set the step's plan; called by the pipeline before each step."""
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._gate.policy.check_steps(num_inference_steps)
            self._gate.forget()
        self._gate.plan = self._gate.policy.plan(step)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Hook the denoiser at the first call; name the branch that it runs next."""
        self._gate.context = BRANCHES[self._count_prepared]
        self._count_prepared += 1
        if self._gate.attention:
            return
        check_class(type(denoiser).__name__)
        for module in attention_modules(denoiser).values():
            hook = AttentionHook(self._gate, module)
            HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
            self._gate.attention.append(hook)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """After the last branch of the last step, take the hooks off."""
        if self._step == self._num_inference_steps - 1 and self._count_prepared == self.num_conditions:
            for module in attention_modules(denoiser).values():
                remove_hook(module)
            self._gate.attention.clear()

    def _is_cfg_enabled(self) -> bool:
        plan: Any = self._gate.plan
        return bool(super()._is_cfg_enabled()) and not (plan is not None and plan.drop_guidance)
