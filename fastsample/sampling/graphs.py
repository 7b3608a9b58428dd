"""A whole sampling loop as one CUDA graph, replayed for every step: network and solver step in one submission."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastsample.sampling.backend import MOST_INPUTS, MOST_OUTPUTS, accumulation_dtype, combine_into
from fastsample.sampling.fused import fits
from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tables.lower import NOISE
from fastsample.tables.table import Table

DeviceModel = Callable[[Tensor, Tensor], Tensor]
"""`model(x, t) -> output`; `t` is the node's time as a float32 tensor of one element on x's device."""


class GraphedLoop:
    """Runs `table` over `model` on samples like `like`, by replaying one captured step.

        loop = GraphedLoop(table, model, latents, denoiser=pipe.unet)
        latents = loop.run(latents)

    Every step does the same: the model, one launch of `linear_step`, whose row is picked by a step index on the
    device, and copies that shift the history. On the CPU the same step runs without a graph. What cannot be replayed
    is refused: samples of another shape, dtype or device than `like`; single-step tables with more states than a
    launch has room for; a `denoiser` with hooks, whose branches in Python would be frozen (T-GATE, offloading,
    caches). The model must not synchronise, and must read no tensor that is not the same object at every step.
    Raises ValueError for these, RuntimeError when the model cannot be captured.
    """

    def __init__(self, table: Table, model: DeviceModel, like: Tensor, denoiser: nn.Module | None = None) -> None:
        _check_hooks(denoiser)
        self._table, self._model = table, model
        lowered, dtype = table.lowered, accumulation_dtype(like.dtype)
        if not fits(lowered):
            raise ValueError(
                f"table of {table.solver!r} has {1 + len(lowered.targets)} outputs and {len(lowered.inputs)} inputs "
                f"a step; a launch has room for {MOST_OUTPUTS} and {MOST_INPUTS}: use fastsample.integrate, or a "
                "lower order"
            )
        self._weights = torch.from_numpy(lowered.dense()).to(dtype).to(like.device)
        self._times = torch.tensor(table.times[:-1], dtype=torch.float32, device=like.device)
        self._index = torch.zeros(1, dtype=torch.int64, device=like.device)
        self._x, self._next = torch.zeros_like(like), torch.zeros_like(like)
        self._noise = torch.zeros_like(like, dtype=dtype) if NOISE in lowered.inputs else None
        self._history = lowered.history
        self._stored = [torch.zeros_like(like, dtype=dtype) for _ in lowered.empty]
        self._made = [torch.zeros_like(like, dtype=dtype) for _ in lowered.targets]
        self._graph = self._capture() if like.device.type == "cuda" else None

    @torch.no_grad()
    def run(self, x: Tensor, generator: Generators = None) -> Tensor:
        """`x` at the table's first time taken to its last; noise of stochastic tables comes from `generator`."""
        if (x.shape, x.dtype, x.device) != (self._x.shape, self._x.dtype, self._x.device):
            raise ValueError(
                f"x is {tuple(x.shape)}, {x.dtype} on {x.device}; the loop was made for {tuple(self._x.shape)}, "
                f"{self._x.dtype} on {self._x.device}: make another"
            )
        self._restart(x)
        for step in self._table.steps:
            if step.next.noise and self._noise is not None:
                self._noise.copy_(draw_noise(x, generator))
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        return self._x.clone()

    def _step(self) -> None:
        """What is captured."""
        output = self._model(self._x, self._times.index_select(0, self._index))
        if output.shape != self._x.shape:
            raise ValueError(f"model output has shape {tuple(output.shape)} for samples of {tuple(self._x.shape)}")
        inputs = [self._x, output, *([] if self._noise is None else [self._noise]), *self._stored]
        combine_into([self._next, *self._made], inputs, self._weights, self._index)
        history, made = self._history, list(self._made)
        for place in range(history - 1, 0, -1):
            self._stored[place].copy_(self._stored[place - 1])
        if history:
            self._stored[0].copy_(made.pop(0))
        for place, state in enumerate(made, start=history):
            self._stored[place].copy_(state)
        self._x.copy_(self._next)
        self._index.add_(1)

    def _restart(self, x: Tensor) -> None:
        self._x.copy_(x)
        self._index.zero_()
        for stored in self._stored:
            stored.zero_()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Warm up on a stream of its own, as capturing asks for, and record one step."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad():
            with torch.cuda.stream(stream):
                for _ in range(2):
                    self._restart(self._x)
                    self._step()
            torch.cuda.current_stream().wait_stream(stream)
            self._restart(self._x)
            try:
                with torch.cuda.graph(graph):
                    self._step()
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise RuntimeError(
                    f"the model cannot be captured ({reason}): it must not synchronise with the host; use "
                    "fastsample.integrate"
                ) from error
        return graph


def _check_hooks(denoiser: nn.Module | None) -> None:
    """Raise ValueError where Python decides what runs at each step: hooks of every library replace `forward`."""
    for name, module in denoiser.named_modules() if denoiser is not None else ():
        if "forward" in vars(module):
            raise ValueError(
                f"denoiser.{name} has hooks, which replaced its forward: a graph would replay what they decided at "
                "the first step; remove them (T-GATE, caches, offloading)"
            )
