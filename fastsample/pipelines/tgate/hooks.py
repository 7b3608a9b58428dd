"""T-GATE's hooks: one on each denoiser, which counts steps and halves batches, one on each attention module."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from fastsample.pipelines.denoisers import TextReader
from fastsample.pipelines.tgate.policy import Action, StepPlan, TGatePolicy

BATCHED = ("", "cond_uncond")
"""Contexts of calls that hold both guidance branches in one batch; others ("cond", "uncond") hold one."""


@dataclass
class Counts:
    """What a pipeline's hooks have done since the handle was made or reset."""

    calls: int = 0  # of the pipeline
    evaluations: int = 0  # of the denoiser, one branch of one image each
    dropped: int = 0  # the same, not made
    cross_computed: int = 0  # attention modules
    cross_reused: int = 0
    self_computed: int = 0
    self_reused: int = 0
    rows_without_cross: int = 0  # evaluations whose cross-attention was reused
    rows_without_self: int = 0


@dataclass
class Macs:
    """Multiply-accumulates of one branch of one image: the whole denoiser, its cross- and its self-attention."""

    denoiser: float = 0.0
    cross: float = 0.0
    self_attention: float = 0.0


@dataclass
class Gate:
    """What the hooks of one pipeline share: the decisions of the current step, and the counts.

    `guided`: the call has two branches; `two_calls`: each is a call of the denoiser, not half a batch.
    """

    policy: TGatePolicy
    pipe: Any
    keep: str
    counts: Counts = field(default_factory=Counts)
    macs: dict[str, Macs] = field(default_factory=dict)  # by group, from the first evaluation
    flops: FlopCounterMode | None = None  # during that evaluation
    measuring: Macs = field(default_factory=Macs)
    attention: list[AttentionHook] = field(default_factory=list)
    plan: StepPlan | None = None
    context: str = ""
    guided: bool = False
    two_calls: bool = False
    timesteps: Any = None  # the scheduler's, by identity: each call of the pipeline lays out new ones
    evaluations: dict[tuple[str, str], int] = field(default_factory=dict)

    def begin(self, context: str, sample: Tensor) -> None:
        """Forget the last call when a new one has begun. Raises ValueError where this call cannot be gated."""
        scheduler = self.pipe.scheduler
        if scheduler.timesteps is self.timesteps:
            return
        self.forget()
        begin = int(getattr(scheduler, "begin_index", None) or 0) // int(getattr(scheduler, "order", 1))
        self.policy.check_steps(_steps(scheduler) - begin)
        self.two_calls = context not in BATCHED
        self.guided = self._is_guided(sample)
        if self.policy.drop_guidance and not self.guided:
            raise ValueError(
                "drop_guidance = True, but this call has no guidance to drop (neither a doubled batch nor two calls "
                "inside cache_context): set it to False"
            )
        self.timesteps = scheduler.timesteps
        self.counts.calls += 1

    def forget(self) -> None:
        """Drop what was kept of a call."""
        self.timesteps, self.plan, self.evaluations = None, None, {}
        for hook in self.attention:
            hook.kept.clear()

    def step(self, group: str) -> int:
        """The step of the coming evaluation; order-2 schedulers and PNDM's warm-up make several a step."""
        key = (group, self.context)
        index = self.evaluations.get(key, 0)
        self.evaluations[key] = index + 1
        scheduler = self.pipe.scheduler
        order = int(getattr(scheduler, "order", 1))
        extra = max(0, len(scheduler.timesteps) - _steps(scheduler) * order)
        return max(0, index - extra) // order

    def count(self, hooks: list[AttentionHook], rows: int, dropped: int) -> None:
        """Count an evaluation of `rows` rows, `dropped` others not made, and what its attention did."""
        assert self.plan is not None
        self.counts.evaluations += rows
        self.counts.dropped += dropped
        self.counts.rows_without_cross += rows * (self.plan.cross is Action.REUSE)
        self.counts.rows_without_self += rows * (self.plan.self_attention is Action.REUSE)
        for cross, action in ((True, self.plan.cross), (False, self.plan.self_attention)):
            number = sum(hook.cross is cross for hook in hooks)
            name = f"{'cross' if cross else 'self'}_{'reused' if action is Action.REUSE else 'computed'}"
            setattr(self.counts, name, getattr(self.counts, name) + number)

    def measured(self, cross: bool, flops: int) -> None:
        """Add an attention module's share of the evaluation being measured."""
        name = "cross" if cross else "self_attention"
        setattr(self.measuring, name, getattr(self.measuring, name) + flops)

    def _is_guided(self, sample: Tensor) -> bool:
        """As the pipeline says; where it does not, whether the batch is two equal halves."""
        says = getattr(self.pipe, "do_classifier_free_guidance", None)
        if self.two_calls:
            return bool(says) if says is not None else True
        half, rest = divmod(len(sample), 2)
        # some models append an image to the channels, another one a branch
        doubled = not rest and bool((sample[:half] == sample[half:]).float().mean() > 0.1)
        if says and not doubled:
            raise ValueError(
                f"{type(self.pipe).__name__} is guided, but its batch of {len(sample)} is not one twice; "
                "T-GATE knows guidance as one doubled batch, or as two calls inside cache_context"
            )
        return doubled if says is None else bool(says)


class DenoiserHook(ModelHook):  # type: ignore[misc]
    """Sets the step's plan, and after the gate runs one of the two guidance branches."""

    _is_stateful = True

    def __init__(self, gate: Gate, group: str, attention: list[AttentionHook]) -> None:
        super().__init__()
        self.gate, self.group, self.attention = gate, group, attention
        self.contexts = StateManager(BaseState)  # diffusers' cache_context names the branch here
        self.other: tuple[int, str, Any] | None = None  # step, context and output of the branch that ran
        self.rows = 0  # batch rows of the last evaluation; 0 where it was not made

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator, no-untyped-call]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gate, sample = self.gate, _first_tensor(args, kwargs)
        gate.context = self._context()
        gate.begin(gate.context, sample)
        step = gate.step(self.group)
        gate.plan = gate.policy.plan(step)
        if not (gate.plan.drop_guidance and gate.guided):
            return self._evaluate(module, len(sample), 0, args, kwargs)
        if gate.two_calls:
            return self._one_of_two_calls(module, step, len(sample), args, kwargs)
        return self._one_of_two_halves(module, len(sample) // 2, args, kwargs)

    def _compiled(self, module: nn.Module) -> bool:
        """Whether any of it is: torch.compile gives up on what it first sees under a counter."""
        whole = any(hasattr(component, "_orig_mod") for component in self.gate.pipe.components.values())
        return whole or any(part._compiled_call_impl is not None for part in module.modules())

    def _evaluate(
        self, module: nn.Module, rows: int, dropped: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        first = self.group not in self.gate.macs
        macs = self.gate.macs.setdefault(self.group, Macs())
        measure = first and not self._compiled(module)
        output = (
            self._measured(macs, rows, args, kwargs) if measure else self.fn_ref.original_forward(*args, **kwargs)
        )
        self.rows = rows
        self.gate.count(self.attention, rows, dropped)
        return output

    def _measured(self, macs: Macs, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The first evaluation, under torch's FLOP counter; the attention hooks read it."""
        gate = self.gate
        gate.measuring = macs
        with FlopCounterMode(display=False) as gate.flops:
            output = self.fn_ref.original_forward(*args, **kwargs)
        macs.denoiser = gate.flops.get_total_flops()
        for name, flops in vars(macs).items():
            setattr(macs, name, flops / 2 / rows)
        gate.flops = None
        return output

    def _one_of_two_calls(
        self, module: nn.Module, step: int, rows: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The first call of a step runs; the second returns its output, so that the guidance formula does nothing."""
        context = self.gate.context
        if self.other is not None and self.other[0] == step and self.other[1] != context:
            self.rows = 0
            self.gate.counts.dropped += rows
            return self.other[2]
        output = self._evaluate(module, rows, 0, args, kwargs)
        self.other = (step, context, output)
        return output

    def _one_of_two_halves(self, module: nn.Module, half: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The network runs on one half of everything that has the guided batch size; its output is doubled."""
        branch = slice(0, half) if self.gate.keep == "negative" else slice(half, 2 * half)

        def cut(value: Any) -> Any:
            return value[branch] if isinstance(value, Tensor) and value.ndim and len(value) == 2 * half else value

        def double(value: Any) -> Any:
            return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim else value

        args = tree_map(cut, args)
        # positions have no batch, but may be as many
        kwargs = {name: value if "rotary" in name else tree_map(cut, value) for name, value in kwargs.items()}
        return tree_map(double, self._evaluate(module, half, half, args, kwargs))

    def _context(self) -> str:
        try:
            return str(self.contexts.context.name)
        except ValueError:  # the pipeline uses none
            return ""

    def reset_state(self, module: nn.Module) -> nn.Module:
        """The pipeline is done: free what was kept."""
        self.gate.forget()
        self.other = None
        self.contexts.set_context(None)
        return module


class AttentionHook(ModelHook):  # type: ignore[misc]
    """Computes, keeps or returns an attention module's output, as the step's plan says."""

    def __init__(self, gate: Gate, module: nn.Module) -> None:
        super().__init__()
        self.gate = gate
        self.kept: dict[str, Tensor] = {}  # by context
        self.cross: bool | None = None  # unknown before the first call
        self._reads_text = TextReader(module)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gate = self.gate
        if gate.plan is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        self.cross = self._reads_text(args, kwargs)
        action = gate.plan.cross if self.cross else gate.plan.self_attention
        if action is Action.REUSE and self.kept:
            return self._reused()
        before = gate.flops.get_total_flops() if gate.flops else 0
        output = self.fn_ref.original_forward(*args, **kwargs)
        if gate.flops:
            gate.measured(self.cross, gate.flops.get_total_flops() - before)
        if self.cross and not isinstance(output, Tensor):
            raise ValueError(
                f"{type(module).__name__} returns a {type(output).__name__}: joint attention, which cannot be cached"
            )
        if action is not Action.COMPUTE:
            merged = gate.plan.merge and gate.guided and not gate.two_calls
            self.kept[gate.context] = torch.stack(output.chunk(2)).mean(0) if merged else output
        return output

    def _reused(self) -> Tensor:
        """The kept output; of two calls, after the gate, the mean of theirs."""
        gate = self.gate
        assert gate.plan is not None
        if gate.plan.drop_guidance and gate.two_calls and len(self.kept) > 1:
            self.kept = {gate.context: torch.stack(list(self.kept.values())).mean(0)}
        return self.kept.get(gate.context, next(iter(self.kept.values())))


def _steps(scheduler: Any) -> int:
    """Steps of the call, which are fewer than evaluations where a step makes several."""
    steps = getattr(scheduler, "num_inference_steps", None)
    return int(steps) if steps else len(scheduler.timesteps)


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The latents: the first argument, or the one so named."""
    for value in (*args, *(kwargs.get(name) for name in ("sample", "hidden_states"))):
        if isinstance(value, Tensor):
            return value
    raise ValueError(f"the denoiser was called without a latent tensor: it has {', '.join(kwargs)}")
