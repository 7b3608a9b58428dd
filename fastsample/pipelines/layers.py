"""What is put around a module's calls, and stays there whatever else replaces, restores or compiles its `forward`.

accelerate's offloading re-installs the `forward` that it once found, torch.compile keeps what it was given. So the
module is given another class, whose `__call__` goes through the module's layers; without layers it has its own again.
There is one such class for each, so that what was compiled for it is met again.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastsample.pipelines.denoisers import Denoiser, inner
from fastsample.pipelines.overlay import cover, reduced

GATE = "T-GATE"
"""The name of T-GATE's layers."""

SHARED, EVALUATED, CHANGED = 1, 2, 3
"""Depths: where the rows that other layers leave are shared among processes, where those are evaluated, and where by
another network."""

LAYERS = "_fastsample_around"
_LEFT_OUT: ContextVar[bool] = ContextVar("left_out", default=False)
_CHANGING = threading.Lock()  # held while a module's layers change


@dataclass(frozen=True, eq=False)
class Layer:
    """`around(beneath, *args, **kwargs)` is called in place of the module, and `forget()` when a pipeline is done.

    Of two layers the one of greater `depth` is beneath: it sees the rows that the others leave. `unhooked(state)` is
    the module's state for a copy, without what else was put on the modules inside.
    """

    name: str
    around: Callable[..., Any]
    forget: Callable[[], None] = lambda: None
    depth: int = 0
    unhooked: Callable[[dict[str, Any]], dict[str, Any]] = lambda state: state


def layers_of(module: nn.Module) -> tuple[Layer, ...]:
    """The layers on a module, the outermost one last."""
    found: tuple[Layer, ...] = vars(module).get(LAYERS, ())
    return found


def layers_on(denoiser: Denoiser) -> tuple[Layer, ...]:
    """The layers on a denoiser, those beneath torch.compile's wrapper too."""
    return layers_of(denoiser.module) + (
        layers_of(denoiser.component) if denoiser.module is not denoiser.component else ()
    )


@contextlib.contextmanager
def layered(module: nn.Module, layer: Layer) -> Iterator[None]:
    """In the block `layer` is around what the module was before. Blocks may be left in any order."""
    try:  # from here on, as an interrupt may come before the block
        with _CHANGING:
            # sorted is stable: of one depth the latest is the outermost
            _put_on(module, tuple(sorted((*layers_of(module), layer), key=lambda own: -own.depth)))
        yield
    finally:
        with _CHANGING:
            _put_on(module, tuple(other for other in layers_of(module) if other is not layer))


@contextlib.contextmanager
def unlayered() -> Iterator[None]:
    """In the block and its thread networks do as without layers, but for those that only look on."""
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def _put_on(module: nn.Module, layers: tuple[Layer, ...]) -> None:
    kind = type(module)
    own = kind.__mro__[1] if LAYERS in vars(module) else kind
    vars(module).pop(LAYERS, None)
    if layers:
        vars(module)[LAYERS] = layers
    # torch.compile's wrapper hands what is set to its module
    object.__setattr__(module, "__class__", _with_layers(own) if layers else own)


@functools.cache
def _with_layers(base: type[nn.Module]) -> type[nn.Module]:
    """The class of modules of class `base` with layers."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        beneath = functools.partial(base.__call__, self)
        left_out = _LEFT_OUT.get()
        for layer in vars(self).get(LAYERS, ()):
            if not left_out or layer.depth == EVALUATED:
                beneath = functools.partial(layer.around, beneath)
        return beneath(*args, **kwargs)

    def reset(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        for layer in layers_of(self):
            layer.forget()
        module = inner(self)
        own = getattr(base if module is self else type(module), "_reset_stateful_cache", None)
        if own is not None:
            own(module, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        make, arguments, state, *rest = reduced(self, base, protocol)
        state = {key: value for key, value in state.items() if key != LAYERS}
        for layer in layers_of(self):
            state = layer.unhooked(state)
        return make, arguments, state, *rest

    members = {"__call__": call, "_reset_stateful_cache": reset, "__reduce_ex__": reduce}
    return cover(base, base, {"_fastsample_layers": (base, ()), **members})
