"""T-GATE: reuse cross-attention, and drop guidance, after the first steps (Zhang, Liu et al., arXiv:2404.02747)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fastsample.pipelines.denoisers import (
    TextReader,
    attention_modules,
    check_caches,
    find_denoisers,
    hooks_of,
    inner,
)
from fastsample.pipelines.tgate.convergence import Convergence, measure_convergence
from fastsample.pipelines.tgate.policy import TGatePolicy

if TYPE_CHECKING:
    from fastsample.pipelines.tgate.hooks import Gate

NAME = "fastsample_tgate"
PRESETS: dict[str, dict[str, Any]] = {
    "sd15": {"gate_step": 10},
    "sd21": {"gate_step": 10},
    "sdxl": {"gate_step": 10},
    "sdxl-v2": {"gate_step": 10, "sp_interval": 5, "warm_up": 2},
    "pixart": {"gate_step": 8},
    "pixart-v2": {"gate_step": 15, "sp_interval": 3, "warm_up": 2},
    "lcm": {"gate_step": 1, "drop_guidance": False},
    "deepcache": {"gate_step": 10},
}
"""The authors' recipes: for 25 steps, and "lcm" for 4; "deepcache" is the one they use together with DeepCache."""


@dataclass(frozen=True)
class TGate:
    """Gate a pipeline's cross-attention: `with TGate(gate_step=10).apply(pipe): pipe(prompt)`.

    Before step `gate_step` everything is computed, but self-attention is only every `sp_interval` steps after the
    first `warm_up`. From it on cross-attention outputs are those of the last step before it, the mean of both
    guidance branches; self-attention is computed every `fi_interval` steps; and with `drop_guidance` one branch
    runs, `keep` "negative" (as the authors do) or "positive". `cache=False` drops guidance alone. Steps are the
    scheduler's, however many evaluations it makes in one. Raises ValueError on values out of range.
    """

    gate_step: int = 10
    sp_interval: int = 1
    fi_interval: int = 1
    warm_up: int = 0
    keep: str = "negative"
    drop_guidance: bool = True
    cache: bool = True

    def __post_init__(self) -> None:
        if self.keep not in ("negative", "positive"):
            raise ValueError(f"keep = {self.keep!r}: use 'negative' or 'positive'")
        self.policy  # noqa: B018  checks the rest

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TGate:
        """A published recipe by name (:data:`PRESETS`), with `changes`."""
        if name not in PRESETS:
            raise ValueError(f"preset = {name!r} is unknown: use one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @staticmethod
    def suggest(pipe: Any, prompts: Sequence[str], *, tolerance: float = 0.1, **call: Any) -> Convergence:
        """Where the gate may lie on this pipeline: `.gate_step`, the earliest whose outputs are within `tolerance`.

        One ungated run; see :func:`fastsample.pipelines.tgate.convergence.measure_convergence`.
        """
        return measure_convergence(pipe, prompts, tolerance=tolerance, **call)

    @property
    def policy(self) -> TGatePolicy:
        """The step plan."""
        values = asdict(self)
        del values["keep"]
        return TGatePolicy(**values)

    def apply(self, pipe: Any) -> TGateHandle:
        """Hook `pipe`'s denoisers; undone by the handle's :meth:`~TGateHandle.remove` or at the end of a `with`.

        Raises ValueError for models without cross-attention to gate, for pipelines gated already, and for those with
        another cache.
        """
        denoisers = find_denoisers(pipe)
        for name, module in denoisers.items():
            if NAME in hooks_of(inner(module)):
                raise ValueError(f"pipe.{name} is gated already: remove that handle first")
            check_caches(name, module)
        return TGateHandle(self, pipe, denoisers)


@dataclass(frozen=True)
class TGateSummary:
    """What a handle's hooks have done since it was made or reset.

    Modules hooked; calls of the pipeline; evaluations (of one branch of one image) made and dropped; attention
    modules computed and reused; multiply-accumulates that all evaluations would have taken, and those saved by
    dropping guidance and by reusing attention (torch's count, attention's own products included; 0 where the
    denoiser is compiled); bytes that the kept outputs take now.
    """

    cross_modules: int
    self_modules: int
    calls: int
    evaluations: int
    dropped: int
    cross_computed: int
    cross_reused: int
    self_computed: int
    self_reused: int
    macs: float
    macs_saved_by_guidance: float
    macs_saved_by_caching: float
    cache_bytes: int

    @property
    def saved(self) -> float:
        """The share of multiply-accumulates saved."""
        return (self.macs_saved_by_guidance + self.macs_saved_by_caching) / self.macs if self.macs else 0.0


class TGateHandle:
    """A gated pipeline. A context manager; :meth:`remove` leaves the pipeline as it was before."""

    def __init__(self, tgate: TGate, pipe: Any, denoisers: dict[str, nn.Module]) -> None:
        from fastsample.pipelines.tgate.hooks import AttentionHook, DenoiserHook, Gate

        self.gate: Gate = Gate(tgate.policy, pipe, tgate.keep)
        self._hooked: list[tuple[nn.Module, bool]] = []  # and whether it had a registry
        modules = {name: attention_modules(module) for name, module in denoisers.items()}  # may raise
        if not any(TextReader(module).possible for found in modules.values() for module in found.values()):
            raise ValueError(f"pipe = {type(pipe).__name__}: no cross-attention was found in {', '.join(denoisers)}")
        for name, module in denoisers.items():
            group = "controlnet" if name == "controlnet" else "denoiser"
            own = []
            for attention in modules[name].values():
                own.append(AttentionHook(self.gate, attention))
                self._register(attention, own[-1])
            self.gate.attention += own
            self._register(inner(module), DenoiserHook(self.gate, group, own))
            self._free_after_calls(inner(module))

    def remove(self) -> None:
        """Take every hook off; the pipeline is what it was."""
        for module, had_registry in reversed(self._hooked):
            remove_hook(module, keep_registry=had_registry)
            module.__dict__.pop("_reset_stateful_cache", None)
        self._hooked.clear()
        self.gate.forget()

    def reset(self) -> None:
        """Forget the last call's outputs and all counts."""
        from fastsample.pipelines.tgate.hooks import Counts

        self.gate.forget()
        self.gate.counts = Counts()

    def summary(self) -> TGateSummary:
        """Counts since the handle was made or reset."""
        from fastsample.pipelines.tgate.hooks import Macs

        hooks, counts = self.gate.attention, asdict(self.gate.counts)
        macs = self.gate.macs.get("denoiser", Macs())
        caching = (
            counts.pop("rows_without_cross") * macs.cross + counts.pop("rows_without_self") * macs.self_attention
        )
        kinds = [hook.cross for hook in hooks]
        return TGateSummary(
            kinds.count(True),
            kinds.count(False),
            **counts,
            macs=(counts["evaluations"] + counts["dropped"]) * macs.denoiser,
            macs_saved_by_guidance=counts["dropped"] * macs.denoiser,
            macs_saved_by_caching=caching,
            cache_bytes=sum(value.nbytes for hook in hooks for value in hook.kept.values()),
        )

    def __enter__(self) -> TGateHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def _register(self, module: nn.Module, hook: Any) -> None:
        from diffusers.hooks import HookRegistry

        had_registry = hasattr(module, "_diffusers_hook")
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, NAME)
        self._hooked.append((module, had_registry))

    def _free_after_calls(self, module: nn.Module) -> None:
        """Have the pipeline's clean-up reach the hooks, also on models without diffusers' CacheMixin."""
        if not hasattr(module, "_reset_stateful_cache"):
            registry: Any = module._diffusers_hook
            module.__dict__["_reset_stateful_cache"] = registry.reset_stateful_hooks


def remove_hook(module: nn.Module, *, keep_registry: bool = False) -> None:
    """Remove our hook; hooks that were registered after it stay, which diffusers 0.42's remove_hook gets wrong.

    A registry left empty goes too, but for `keep_registry`.
    """
    registry: Any = module._diffusers_hook
    place = registry._hook_order.index(NAME)
    later = registry._fn_refs[place + 1] if place + 1 < len(registry._fn_refs) else None
    below = registry._fn_refs[place].original_forward
    forward = later.forward if later is not None and later.original_forward is not None else None
    registry.remove_hook(NAME, recurse=False)
    if later is not None and forward is not None:
        later.forward, later.original_forward = forward, below
    if not registry.hooks and not keep_registry:
        del module._diffusers_hook
        module.__dict__.pop("forward", None)
