"""A whole sampling loop as replayed CUDA graphs: network and solver step in one submission."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fastsample.sampling.backend import MOST_INPUTS, MOST_OUTPUTS, accumulation_dtype, combine_into
from fastsample.sampling.fused import fits
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.sampling.replay import captured, check_hooks, warming_up
from fastsample.tables.lower import NOISE, OUTPUT
from fastsample.tables.table import Table

DeviceModel = Callable[[Tensor, Tensor], Tensor]
"""`model(x, t) -> output`; `t` is the node's time as a float32 tensor of one element on x's device."""


class GraphedLoop:
    """Runs `table` over `model` on samples like `like`, by replaying captured steps.

        loop = GraphedLoop(table, model, latents, denoiser=pipe.unet)
        latents = loop.run(latents)

    A step is the model and one launch of `linear_step`, whose row is picked by a step index on the device; what it
    makes is written over what nobody reads again. So the history is a ring, and as many steps are captured as it has
    entries. On the CPU the same steps run without a graph.

    Guidance is in the model, or with `guided` in the launch: `model` then returns [2 B, ...], the unconditional
    branch first, and the scale is given to `run`. With `decode`, such as a VAE's, a run ends with a graph of it.

    What cannot be replayed is refused: samples of another shape, dtype or device than `like`; single-step tables with
    more states than a launch has room for; a `denoiser` with hooks, whose branches in Python would be frozen (T-GATE,
    offloading, caches). The model must not synchronise, and must read no tensor that is not the same object at every
    step. Raises ValueError for these, RuntimeError when the model cannot be captured.
    """

    def __init__(
        self,
        table: Table,
        model: DeviceModel,
        like: Tensor,
        denoiser: nn.Module | None = None,
        *,
        guided: bool = False,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if denoiser is not None:
            check_hooks(denoiser)
        self._table, self._model, self._guided, self._decode = table, model, guided, decode
        lowered, dtype = table.lowered, accumulation_dtype(like.dtype)
        if not fits(lowered) or len(lowered.inputs) + guided > MOST_INPUTS:
            raise ValueError(
                f"table of {table.solver!r} has {1 + len(lowered.targets)} outputs and "
                f"{len(lowered.inputs) + guided} inputs a step; a launch has room for {MOST_OUTPUTS} and "
                f"{MOST_INPUTS}: use fastsample.integrate, or a lower order"
            )
        self._dense, self._output = lowered.dense(), lowered.inputs.index(OUTPUT)
        self._weights = self._weighted(1.0 if guided else None).to(like.device, dtype)
        self._times = torch.tensor(table.times[:-1], dtype=torch.float32, device=like.device)
        self._index = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._x = torch.zeros_like(like)
        self._noise = torch.zeros_like(like, dtype=dtype) if NOISE in lowered.inputs else None
        entries = [torch.zeros_like(like, dtype=dtype) for _ in lowered.empty]
        self._ring, self._states = entries[: lowered.history], entries[lowered.history :]
        self._phases = max(1, len(self._ring))
        self._graphs: list[torch.cuda.CUDAGraph] = []
        if like.device.type == "cuda":
            with torch.cuda.device(like.device), torch.no_grad():
                self._capture()

    @torch.no_grad()
    def run(
        self, x: Tensor, generator: Generators = None, *, guidance_scale: float | Sequence[float] | None = None
    ) -> Tensor:
        """`x` at the table's first time taken to its last, decoded if the loop does that.

        Noise of stochastic tables comes from `generator`. guidance_scale: of a `guided` loop, one, or one a step.
        """
        if (x.shape, x.dtype, x.device) != (self._x.shape, self._x.dtype, self._x.device):
            raise ValueError(
                f"x is {tuple(x.shape)}, {x.dtype} on {x.device}; the loop was made for {tuple(self._x.shape)}, "
                f"{self._x.dtype} on {self._x.device}: make another"
            )
        if self._guided:
            self._weights.copy_(self._weighted(guidance_scale))
        elif guidance_scale is not None:
            raise ValueError(
                f"guidance_scale = {guidance_scale}: the model guides here; make a loop with guided=True"
            )
        self._restart(x)
        with torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext():
            for index, step in enumerate(self._table.lowered.steps):
                if step.noisy and self._noise is not None:
                    self._noise.copy_(draw_noise(x, generator))
                self._play(index % self._phases, self._step)
            if self._decode is None:
                return self._x.clone()
            self._play(self._phases, self._decoded)
        return self._image.clone()

    def _weighted(self, scale: float | Sequence[float] | None) -> Tensor:
        """The table, the output's column split between the branches where guidance is in the launch.

        Raises ValueError for a scale that is missing, or not one a step.
        """
        if not self._guided:
            return torch.from_numpy(self._dense)
        steps = len(self._dense)
        if scale is None or np.shape(scale) not in ((), (steps,)):
            raise ValueError(f"guidance_scale = {scale}: give a number, or one for each of {steps} steps")
        g = np.broadcast_to(np.asarray(scale, dtype=np.float64), (steps,))[:, None]
        before, column, after = np.split(self._dense, [self._output, self._output + 1], axis=2)
        own = column[:, :, 0]
        return torch.from_numpy(np.concatenate([before, np.stack([(1 - g) * own, g * own], 2), after], axis=2))

    def _step(self, phase: int) -> None:
        """What is captured: the step at which the newest entry of the history is number `phase` - 1 of the ring."""
        output = self._model(self._x, self._times.index_select(0, self._index))
        count = len(self._x)
        if output.shape != (count * (1 + self._guided), *self._x.shape[1:]):
            raise ValueError(f"model output has shape {tuple(output.shape)} for samples of {tuple(self._x.shape)}")
        outputs = [output[:count], output[count:]] if self._guided else [output]
        noise = [] if self._noise is None else [self._noise]
        history = [self._ring[(phase - 1 - age) % self._phases] for age in range(len(self._ring))]
        made = [self._x, *self._ring[phase : phase + 1], *self._states]  # over the oldest entry
        combine_into(made, [self._x, *outputs, *noise, *history, *self._states], self._weights, self._index)
        self._index.add_(1)

    def _decoded(self, phase: int) -> None:
        assert self._decode is not None
        self._image = self._decode(self._x)

    def _play(self, number: int, otherwise: Callable[[int], None]) -> None:
        if self._graphs:
            self._graphs[number].replay()
        else:
            otherwise(number)

    def _restart(self, x: Tensor) -> None:
        self._x.copy_(x)
        self._index.zero_()

    def _capture(self) -> None:
        """Warm up on a stream of its own, as capturing asks for, and record each phase, then what decodes."""
        recorded = [partial(self._step, phase) for phase in range(self._phases)]
        if self._decode is not None:
            recorded.append(partial(self._decoded, self._phases))
        with warming_up():
            for record in recorded:
                self._restart(self._x)
                record()
        self._restart(self._x)
        for record in recorded:
            self._graphs.append(captured(record, self._graphs[0].pool() if self._graphs else None))
