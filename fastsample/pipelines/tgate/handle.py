"""T-GATE: reuse cross-attention, and drop guidance, after the first steps (Zhang, Liu et al., arXiv:2404.02747)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fastsample.pipelines.denoisers import Denoiser, check_caches
from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.guidance.steps import Runs
from fastsample.pipelines.layers import GATE, Layer, layered, layers_on
from fastsample.pipelines.tgate.attention import AttentionHook, measuring
from fastsample.pipelines.tgate.convergence import Convergence, measure_convergence
from fastsample.pipelines.tgate.counts import Counts, Macs, Meter, Shape
from fastsample.pipelines.tgate.denoiser import GatedDenoiser
from fastsample.pipelines.tgate.gated import Gated, GatedRun
from fastsample.pipelines.tgate.policy import TGatePolicy
from fastsample.pipelines.tgate.registration import register, unhooked
from fastsample.pipelines.tgate.summary import TGateSummary
from fastsample.pipelines.tgate.targets import attention_modules, gated_denoisers
from fastsample.sampling.replay import GraphedForward

_APPLYING = threading.Lock()  # held while hooks are put on a pipeline

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
        """What is decided at each step."""
        values = asdict(self)
        del values["keep"]
        return TGatePolicy(**values)

    def apply(self, pipe: Any) -> TGateHandle:
        """Gate `pipe`'s denoisers; undone by the handle's :meth:`~TGateHandle.remove` or at the end of a `with`.

        Raises ValueError for models without cross-attention to gate, for pipelines gated already, and for those with
        another cache.
        """
        with _APPLYING:
            found = gated_denoisers(pipe)
            for denoiser in found:
                if any(layer.name == GATE for layer in layers_on(denoiser)):
                    raise ValueError(f"pipe.{denoiser.name} is gated already: remove that handle first")
                check_caches(denoiser)
                if isinstance(vars(denoiser.module).get("forward"), GraphedForward):
                    raise ValueError(
                        f"pipe.{denoiser.name} is replayed by fastsample.graphs, which would repeat what T-GATE did "
                        "at one step: leave that block first, or use GuidanceCut"
                    )
            return TGateHandle(self, pipe, found)


class TGateHandle:
    """A gated pipeline. A context manager; :meth:`remove` leaves the pipeline as it was before.

    The denoisers are gated for every pipeline that has them, and in every thread; each thread has a call of its own.
    """

    def __init__(self, tgate: TGate, pipe: Any, found: Sequence[Denoiser]) -> None:
        self._gated = Gated(tgate.policy, pipe, Branch(tgate.keep))
        self._modules = {denoiser.name: denoiser.module for denoiser in found}
        self._attention = {
            denoiser.name: [
                AttentionHook(self._gated.under_way, f"{denoiser.name}.{name}", module)
                for name, module in attention_modules(denoiser.module).items()  # may raise
            ]
            for denoiser in found
        }
        if not any(own.reads_text.possible for part in self._attention.values() for own in part):
            names = ", ".join(self._attention)
            raise ValueError(f"pipe = {type(pipe).__name__}: no cross-attention was found in {names}")
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._attending())
            for denoiser in found:
                around = GatedDenoiser(self._gated, denoiser, self._attention[denoiser.name])
                undo.enter_context(
                    layered(denoiser.component, Layer(GATE, around, self._gated.forget, unhooked=unhooked))
                )
            self._undo = undo.pop_all()

    def remove(self) -> None:
        """Leave the pipeline as it was."""
        with self._gated.lock:
            self._undo.close()
            self._gated.active = False
            self._gated.runs = Runs(GatedRun)

    def reset(self) -> None:
        """Forget the outputs kept and all counts."""
        with self._gated.lock:
            self._gated.runs = Runs(GatedRun)
            self._gated.counts = Counts()

    def summary(self) -> TGateSummary:
        """Counts since the handle was made or reset. What evaluations cost is measured now, by one of each shape."""
        gated, run = self._gated, self._gated.runs.current
        with gated.lock:
            for shape in gated.counts.evaluations.keys() - gated.macs.keys():
                gated.macs[shape] = self._measured(shape)
            kinds = [own.cross for part in self._attention.values() for own in part]
            kept = [value for own in run.attention.values() for value in own.values()] if run else []
            return TGateSummary.of(
                gated.counts,
                gated.macs,
                kinds.count(True),
                kinds.count(False),
                sum(value.nbytes for value in kept),
            )

    @contextlib.contextmanager
    def _attending(self) -> Iterator[None]:
        """In the block the attention modules do as the evaluation under way says."""
        with contextlib.ExitStack() as undo:
            for own in (own for part in self._attention.values() for own in part):
                undo.callback(register(own.module, own))
            yield

    def _measured(self, shape: Shape) -> Macs:
        gated, meter = self._gated, Meter()
        hooked = contextlib.nullcontext() if gated.active else self._attending()
        with hooked, gated.under_way.entered(measuring(meter), compiled=False):
            return gated.samples[shape].measured(self._modules[shape[0]], meter)

    def __enter__(self) -> TGateHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
