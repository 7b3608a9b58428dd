"""How far cross-attention is from its final value at each step: where a model's gate may lie."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastsample.pipelines.tgate.targets import TextReader, attention_modules, gated_denoisers

MOST_ELEMENTS = 65536
"""Of a layer's output that are kept a step; a fixed random choice beyond that."""


@dataclass(frozen=True)
class Convergence:
    """`distances` [steps, layers]: RMS of (output at the step - output at the last step) over the last one's RMS.

    `gate_step` is the earliest gate at which the mean over layers is within `tolerance`, or None.
    """

    layers: tuple[str, ...]
    distances: Tensor
    tolerance: float

    @property
    def gate_step(self) -> int | None:
        """The step after the first from which on the outputs to be reused stay within the tolerance."""
        far = (self.distances.mean(1) > self.tolerance).nonzero().flatten()
        last_far = int(far[-1]) if len(far) else -1
        return last_far + 2 if last_far + 2 < len(self.distances) else None


class _Recorder:
    """Keeps a layer's cross-attention outputs in this thread, one tensor a call."""

    def __init__(self, module: nn.Module) -> None:
        self.outputs: list[Tensor] = []
        self._reads_text = TextReader(module)
        self._thread = threading.current_thread()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if threading.current_thread() is not self._thread:
            return
        if not (self._reads_text(args, kwargs) and isinstance(output, Tensor)):
            return
        flat = output.detach().flatten().float()
        if len(flat) > MOST_ELEMENTS:
            chosen = torch.randint(len(flat), (MOST_ELEMENTS,), generator=torch.Generator().manual_seed(0))
            flat = flat[chosen.to(flat.device)]
        self.outputs.append(flat.cpu())


def measure_convergence(
    pipe: Any, prompts: Sequence[str], *, tolerance: float = 0.1, generator: Any = None, **call: Any
) -> Convergence:
    """Run `pipe` once on `prompts` and compare every cross-attention output with that of the last step.

    `call` are the pipeline's arguments, e.g. num_inference_steps=25, guidance_scale=7.5.
    Raises ValueError where the pipeline has no cross-attention to gate, or tolerance is not positive.
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance = {tolerance!r}: give a positive number")
    modules = {
        f"{denoiser.name}.{name}": module
        for denoiser in gated_denoisers(pipe)
        if not denoiser.is_controlnet
        for name, module in attention_modules(denoiser.module).items()
    }
    recorders = {name: _Recorder(module) for name, module in modules.items()}
    handles = [module.register_forward_hook(recorders[name], with_kwargs=True) for name, module in modules.items()]
    try:
        pipe(prompt=list(prompts), generator=generator or torch.Generator().manual_seed(0), **call)
    finally:
        for handle in handles:
            handle.remove()
    found = {name: torch.stack(recorder.outputs) for name, recorder in recorders.items() if recorder.outputs}
    if not found:
        raise ValueError(f"pipe = {type(pipe).__name__} ran without cross-attention: there is nothing to gate")
    last = {name: values[-1].square().mean().sqrt() for name, values in found.items()}
    distances = [(values - values[-1]).square().mean(1).sqrt() / last[name] for name, values in found.items()]
    return Convergence(tuple(found), torch.stack(distances, 1), tolerance)
