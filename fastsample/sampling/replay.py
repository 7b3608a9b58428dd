"""Replaying what a network does: capturing, what cannot be captured, and a `forward` that replays by shape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten


@contextmanager
def warming_up() -> Iterator[None]:
    """A stream of its own, joined at the end: what is run in it may be captured afterwards."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


def captured(run: Callable[[], None], pool: Any = None) -> torch.cuda.CUDAGraph:
    """`run` as a graph on the current device, its memory from `pool`. Raises RuntimeError where it synchronises."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            run()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RuntimeError(
            f"the model cannot be captured ({reason}): it must not synchronise with the host; run it without a graph"
        ) from error
    return graph


def check_hooks(denoiser: nn.Module) -> None:
    """Raise ValueError where Python decides what runs at each step: hooks of every library replace `forward`."""
    for name, module in denoiser.named_modules():
        if "forward" in vars(module):
            raise ValueError(
                f"denoiser.{name} has hooks, which replaced its forward: a graph would replay what they decided at "
                "the first step; remove them (T-GATE, caches, offloading)"
            )


@dataclass
class Counts:
    """Calls of the denoisers inside: graphs captured, replays of one, and calls past them."""

    captured: int = 0
    replayed: int = 0
    plain: int = 0


class GraphedForward:
    """A network's `forward`, replayed: what `fastsample.graphs` puts on the instance."""

    def __init__(self, module: nn.Module, shapes: int, counts: Counts) -> None:
        self._module, self._run = module, module.forward
        self.__wrapped__ = module.forward  # pipelines read the signature
        self._shapes, self._counts, self._lock = shapes, counts, threading.Lock()
        self._calls: dict[Any, _Call] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if vars(self._module).get("forward") is not self:
            raise ValueError(
                f"{type(self._module).__name__} has been given hooks inside fastsample.graphs, which replays what was"
                " done without them: remove them, or leave the block first"
            )
        leaves, structure = tree_flatten((args, kwargs))
        kind = (structure, *(_kind_of(leaf) for leaf in leaves))
        with self._lock, torch.no_grad():
            call = self._calls.get(kind)
            if call is None:
                if len(self._calls) == self._shapes:
                    self._counts.plain += 1
                    return self._run(*args, **kwargs)
                call = self._calls[kind] = _Call(self._run, leaves, structure)
                self._counts.captured += 1
            else:
                self._counts.replayed += 1
            return call(leaves)


class _Call:
    """Calls of one kind: tensors of their own that a graph reads, and what it writes."""

    def __init__(self, run: Callable[..., Any], leaves: list[Any], structure: Any) -> None:
        self._run = run
        self._own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._args, self._kwargs = tree_unflatten(self._own, structure)
        devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda}
        self._device = next(iter(devices), None)
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._device is not None:
            with torch.cuda.device(self._device):
                with warming_up():
                    for _ in range(2):
                        self._evaluate()
                self._graph = captured(self._evaluate)

    def __call__(self, leaves: list[Any]) -> Any:
        for own, leaf in zip(self._own, leaves, strict=True):
            if isinstance(leaf, Tensor):
                own.copy_(leaf)
        if self._graph is None:
            self._evaluate()
        else:
            with torch.cuda.device(self._device):
                self._graph.replay()
        return tree_map_only(Tensor, torch.clone, self._output)

    def _evaluate(self) -> None:
        self._output = self._run(*self._args, **self._kwargs)


def _kind_of(leaf: Any) -> Any:
    """What two calls replayed by one graph have in common. Raises ValueError where that cannot be told."""
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    if leaf.__hash__ is None:
        raise ValueError(
            f"a denoiser is called with a {type(leaf).__name__}, which cannot be compared: no graph of it"
        )
    return type(leaf), leaf
