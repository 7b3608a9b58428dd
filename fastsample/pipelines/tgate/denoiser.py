"""What T-GATE puts around a denoiser: it decides, and behind the gate runs one of the two guidance branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastsample.pipelines.counting import count_dropped
from fastsample.pipelines.denoisers import MADE_EVERY_STEP, Denoiser, latents_of, timestep_reader
from fastsample.pipelines.guidance.caller import Branches, Caller
from fastsample.pipelines.guidance.perturbed import put_back
from fastsample.pipelines.guidance.reading import Branch
from fastsample.pipelines.guidance.rows import Batch, gathered
from fastsample.pipelines.tgate.attention import AttentionHook, Evaluation
from fastsample.pipelines.tgate.counts import Sample, shape_of
from fastsample.pipelines.tgate.gated import Gated, GatedRun
from fastsample.pipelines.tgate.policy import Decision, Guidance


class GatedDenoiser:
    """Called in place of a denoiser."""

    def __init__(self, gated: Gated, denoiser: Denoiser, attention: Sequence[AttentionHook]) -> None:
        self._gated, self._denoiser, self._attention = gated, denoiser, attention
        self._timestep = timestep_reader(denoiser.module)

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def __call__(self, beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        gated, group = self._gated, self._denoiser.group
        if not gated.active:  # taken off meanwhile, by another thread
            return beneath(*args, **kwargs)
        caller = Caller.find(gated.pipe)
        branches = caller.branches(self._denoiser.name)
        timestep = self._timestep(args, kwargs)
        run = gated.runs.enter(caller, group, timestep, branches, lambda new: self._begin(new, caller, branches))
        (step,) = run.steps_of(group, branches)
        batch = Batch(beneath, args, kwargs, branches)
        return self._evaluated(run, batch, gated.policy.decide(step, _guidance(batch)))

    def _begin(self, run: GatedRun, caller: Caller, branches: Branches) -> None:
        if branches.perturbed_attention:  # which is refused
            put_back(caller, self._denoiser.module)
        if self._gated.policy.drop_guidance:
            caller.check_momentum()
        self._gated.begin(run, branches)
        # where the attention is compiled, not what calls it
        own = any(part._compiled_call_impl is not None for part in self._denoiser.module.modules())
        run.compiled = own or self._denoiser.compiled or caller.compiled

    def _evaluated(self, run: GatedRun, batch: Batch, decision: Decision) -> Any:
        """The output: behind the gate that of one branch in the place of each, which guidance leaves as it is."""
        branch, keep, rows = batch.copies[0], self._gated.keep, range(batch.rows)
        if not decision.one_branch:
            if batch.branches.calls:
                run.arguments[branch] = self._remembered(batch)
            return self._evaluate(run, batch, decision, rows, batch.copies)
        if not batch.branches.calls:
            first = batch.copies.index(keep) * batch.each
            chosen = range(first, first + batch.each)
            run.one = branch, self._evaluate(run, batch, decision, chosen, (keep,))
            return gathered([batch.part(chosen, run.one[1])], [first + row % batch.each for row in rows])
        if run.one is not None and run.one[0] is not branch:
            self._count(batch, decision, 0)
            return run.one[1]
        own, kept = run.arguments.get(branch, {}), run.arguments.get(keep, {})
        batch = batch.called_with({name: kept[name] for name in kept if kept[name] is not own.get(name)})
        run.one = branch, self._evaluate(run, batch, decision, rows, (keep,))
        return run.one[1]

    def _remembered(self, batch: Batch) -> dict[int | str, Any]:
        """The arguments of a call for one of the branches, but for those that are others in every step."""
        latents = latents_of(batch.args, batch.kwargs)
        changing = (self._denoiser.timestep, *MADE_EVERY_STEP)
        given: list[tuple[int | str, Any]] = [*enumerate(batch.args), *batch.kwargs.items()]
        return {
            name: value
            for name, value in given
            if value is not latents and not any(part and part in str(name) for part in changing)
        }

    def _evaluate(
        self, run: GatedRun, batch: Batch, decision: Decision, rows: Sequence[int], branches: tuple[Branch, ...]
    ) -> Any:
        """The output for some of the rows, those of these `branches`."""
        with self._gated.under_way.entered(Evaluation(decision, branches, run.attention), run.compiled):
            output = batch.evaluate(rows)[1]
        self._count(batch, decision, len(rows))
        return output

    def _count(self, batch: Batch, decision: Decision, evaluated: int) -> None:
        gated = self._gated
        shape = shape_of(self._denoiser.name, (*batch.args, *batch.kwargs.values()))
        kinds = [attention.cross for attention in self._attention]
        dropped = batch.rows - evaluated
        if not self._denoiser.is_controlnet:
            count_dropped(dropped)
        with gated.lock:
            if shape not in gated.samples:
                gated.samples[shape] = Sample.of(batch.args, batch.kwargs, batch.rows)
            gated.counts.evaluated(shape, decision, evaluated, dropped, kinds.count(True), kinds.count(False))


def _guidance(batch: Batch) -> Guidance:
    if batch.branches.calls:
        return Guidance.CALLS
    return Guidance.HALVES if len(batch.copies) > 1 else Guidance.NONE
