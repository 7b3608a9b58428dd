"""T-GATE's hooks: on each denoiser one that decides and halves batches, on each attention module one that obeys."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.hooks import ModelHook
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastsample.pipelines.denoisers import GATE_HOOK, DroppingHook, denoisers, hooks_of, latents_of
from fastsample.pipelines.tgate.call import Evaluation, GatedCall
from fastsample.pipelines.tgate.counts import Macs, Meter
from fastsample.pipelines.tgate.gated import ContextPerThread, Gated
from fastsample.pipelines.tgate.policy import Action, Guidance
from fastsample.pipelines.tgate.targets import TextReader


class AttentionHook(ModelHook):  # type: ignore[misc]
    """Computes, keeps or returns an attention module's output, as the denoiser's evaluation says."""

    def __init__(self, gated: Gated, name: str, module: nn.Module) -> None:
        super().__init__()
        self.gated, self.name = gated, name
        self.cross: bool | None = None  # unknown before the first call
        self._reads_text = TextReader(module)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        evaluation = self.gated.evaluation
        if evaluation is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        self.cross = self._reads_text(args, kwargs)
        decision, kept = evaluation.decision, evaluation.kept[self.name]
        action = decision.cross if self.cross else decision.self_attention
        if action is Action.REUSE and kept:
            return self._reused(evaluation, kept)
        if evaluation.meter is None:
            output = self.fn_ref.original_forward(*args, **kwargs)
        else:
            with evaluation.meter.attention(self.cross):
                output = self.fn_ref.original_forward(*args, **kwargs)
        if self.cross and not isinstance(output, Tensor):
            raise ValueError(
                f"{type(module).__name__} returns a {type(output).__name__}: joint attention, which cannot be cached"
            )
        if action is not Action.COMPUTE:
            kept[evaluation.context] = torch.stack(output.chunk(2)).mean(0) if decision.mean_of_halves else output
        return output

    @staticmethod
    def _reused(evaluation: Evaluation, kept: dict[str, Tensor]) -> Tensor:
        """The kept output; of two calls, after the gate, the mean of theirs."""
        context = evaluation.context
        if evaluation.decision.mean_of_calls and len(kept) > 1:
            mean = torch.stack(list(kept.values())).mean(0)
            kept.clear()
            kept[context] = mean
        return kept.get(context, next(iter(kept.values())))


class DenoiserHook(DroppingHook):
    """Decides what an evaluation does, and after the gate runs one of the two guidance branches."""

    _is_stateful = True

    def __init__(self, gated: Gated, name: str, group: str, attention: list[AttentionHook]) -> None:
        super().__init__()
        self.gated, self.name, self.group, self.attention = gated, name, group, attention
        self.contexts = ContextPerThread()  # diffusers' cache_context names the branch here

    @property
    def rows(self) -> int:
        call = self.gated.calls.current
        return call.rows if call else 0

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gated = self.gated
        with gated.lock:
            if GATE_HOOK not in hooks_of(module):  # removed meanwhile, by another thread
                return self.fn_ref.original_forward(*args, **kwargs)
            around = gated.evaluation
            call, step, rows = self._begin(args, kwargs)
            assert gated.evaluation is not None
            try:
                if not gated.evaluation.decision.one_branch:
                    return self._evaluate(call, module, rows, 0, args, kwargs)
                if call.guidance is Guidance.CALLS:
                    return self._one_of_two_calls(call, module, step, rows, args, kwargs)
                return self._one_of_two_halves(call, module, rows // 2, args, kwargs)
            finally:
                gated.evaluation = around

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[GatedCall, int, int]:
        """The call, the step that it has come to, and the rows given; what attention does at it is decided."""
        latents, context = latents_of(args, kwargs), self.contexts.name
        if not isinstance(latents, Tensor):
            raise ValueError("the denoiser was called with latents in a list, of which T-GATE can make no branches")
        call = self.gated.call(context, latents)
        step = call.next_step(self.group, context)
        for hook in self.attention:
            call.kept.setdefault(hook.name, {})
        self.gated.evaluation = Evaluation(self.gated.policy.decide(step, call.guidance), context, call.kept)
        return call, step, len(latents)

    def reset_state(self, module: nn.Module) -> nn.Module:
        """The pipeline is done: free what was kept."""
        self.gated.calls.current = None
        self.contexts.set_context(None)
        return module

    def _evaluate(
        self,
        call: GatedCall,
        module: nn.Module,
        rows: int,
        dropped: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        evaluation = self.gated.evaluation
        assert evaluation is not None
        with self._measuring(module, evaluation, rows):
            output = self.fn_ref.original_forward(*args, **kwargs)
        call.rows = rows
        kinds = [hook.cross for hook in self.attention]
        self.gated.counts.evaluated(evaluation.decision, rows, dropped, kinds.count(True), kinds.count(False))
        return output

    @contextlib.contextmanager
    def _measuring(self, module: nn.Module, evaluation: Evaluation, rows: int) -> Iterator[None]:
        """The first evaluation of a group is measured, where nothing is compiled: a counter makes that give up."""
        macs = self.gated.macs
        if self.group in macs:
            yield
            return
        macs[self.group] = Macs()
        if any(part.compiled for part in denoisers(self.gated.pipe)) or any(
            part._compiled_call_impl is not None for part in module.modules()
        ):
            yield
            return
        evaluation.meter = Meter()
        with evaluation.meter.evaluation(rows) as macs[self.group]:
            yield

    def _one_of_two_calls(
        self, call: GatedCall, module: nn.Module, step: int, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The first call of a step runs; the second returns its output, so that the guidance formula does nothing."""
        context = self.contexts.name
        ran = call.first_branch.get(self.name)
        if ran is not None and ran[0] == step and ran[1] != context:
            call.rows = 0
            self.gated.counts.dropped += rows
            return ran[2]
        output = self._evaluate(call, module, rows, 0, args, kwargs)
        call.first_branch[self.name] = step, context, output
        return output

    def _one_of_two_halves(
        self, call: GatedCall, module: nn.Module, half: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The network runs on one half of everything that has the guided batch size; its output is doubled."""
        branch = slice(0, half) if self.gated.keep == "negative" else slice(half, 2 * half)

        def cut(value: Any) -> Any:
            return value[branch] if isinstance(value, Tensor) and value.ndim and len(value) == 2 * half else value

        def double(value: Any) -> Any:
            return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

        args = tree_map(cut, args)
        # positions have no batch, but may be as many
        kwargs = {name: value if "rotary" in name else tree_map(cut, value) for name, value in kwargs.items()}
        return tree_map(double, self._evaluate(call, module, half, half, args, kwargs))
