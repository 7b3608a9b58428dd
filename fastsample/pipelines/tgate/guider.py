"""T-GATE as a guider, for diffusers' modular pipelines, which call the denoiser once a branch."""

from __future__ import annotations

import contextlib
import threading

from diffusers.configuration_utils import register_to_config
from diffusers.guiders import ClassifierFreeGuidance
from torch import Tensor, nn

from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.tgate.attention import AttentionHook, Evaluation, Kept, UnderWay
from fastsample.pipelines.tgate.policy import Decision, Guidance, TGatePolicy
from fastsample.pipelines.tgate.registration import register
from fastsample.pipelines.tgate.targets import attention_modules, check_class

BRANCHES = (Branch.POSITIVE, Branch.NEGATIVE)
"""In the order in which the denoiser is called for them."""


class TGateGuider(ClassifierFreeGuidance):  # type: ignore[misc]
    """Classifier-free guidance up to `gate_step`, the conditional branch alone from there on, attention cached.

    `pipe.update_components(guider=TGateGuider(guidance_scale=7.5, gate_step=10))`; arguments as those of
    :class:`fastsample.TGate` and of diffusers' ClassifierFreeGuidance. The denoiser's attention is gated from the
    first step to the last. Raises ValueError for values out of range, joint attention, and a
    call that another thread's overtakes: each needs a guider of its own.
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
        self._policy, self._under_way = TGatePolicy(gate_step, sp_interval, fi_interval, warm_up), UnderWay()
        self._hooks = contextlib.ExitStack()  # takes them off
        self._hooked = False
        self._decision: Decision | None = None
        self._thread: int | None = None  # that of the call under way
        self._kept: dict[str, Kept] = {}

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        """Decide what the step does; called by the pipeline before each step."""
        if step == 0 or self._thread is None:
            self._thread = threading.get_ident()
        self._check_thread()
        super().set_state(step, num_inference_steps, timestep)
        if step == 0:
            self._policy.check_steps(num_inference_steps)
            self._free()
        self._decision = self._policy.decide(step, Guidance.CALLS)

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Gate the attention at the first call, and say what the branch that it runs next does."""
        self._check_thread()
        if not self._hooked:
            check_class(type(denoiser).__name__)
            for name, module in attention_modules(denoiser).items():
                self._hooks.callback(register(module, AttentionHook(self._under_way, name, module)))
            self._hooked = True
        if self._decision is not None:
            branch = BRANCHES[self._count_prepared]
            self._under_way.set(Evaluation(self._decision, (branch,), self._kept))
        self._count_prepared += 1

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """After a branch attention does as ever; after the last one of the last step the hooks go."""
        self._under_way.set(None)
        if self._step == self._num_inference_steps - 1 and self._count_prepared == self.num_conditions:
            self._free()

    def _check_thread(self) -> None:
        """ValueError in a thread whose call was overtaken: a guider knows one step, as all of diffusers' do."""
        if self._thread not in (None, threading.get_ident()):
            raise ValueError(
                "guider: another thread has begun a call with this one meanwhile; give each thread a pipeline with a "
                "guider of its own (guider.new())"
            )

    def _free(self) -> None:
        """Take the hooks off and drop what was kept, that of a call which was aborted too."""
        self._hooks.close()
        self._hooked, self._kept = False, {}
        self._under_way.set(None)

    def _is_cfg_enabled(self) -> bool:
        return bool(super()._is_cfg_enabled()) and not (self._decision is not None and self._decision.one_branch)
