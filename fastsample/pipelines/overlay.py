"""Methods and attributes of one object replaced for a block, in the thread that opened it and in no other.

While blocks are open the object has a class made for it: its own under one layer for each block. A layer does what
its block says where its thread asks, and what is beneath it for everyone else. So blocks may be nested, and left in
any order and by any thread. Copies and pickles of the object, and objects that `type(object)` makes, are of its own
class, and to `type(object) == Class`, which some pipelines ask, it is of its own class still.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_CHANGING = threading.Lock()  # held while an object changes its class
_UNCOVERED: ContextVar[bool] = ContextVar("uncovered", default=False)


@dataclass(frozen=True)
class Attribute:
    """What reading and setting an attribute does: `get(beneath)` is read, and `put(value)` takes what is set.

    `put` is False where the value is for the attribute beneath.
    """

    get: Callable[[Any], Any]
    put: Callable[[Any], bool] = lambda value: False


@contextlib.contextmanager
def overlaid(
    target: Any, *, everywhere: bool = False, depth: int = 0, **members: Callable[..., Any] | Attribute
) -> Iterator[None]:
    """In the block and its thread `target.name(..)` is `members[name](beneath, ..)`, with the method beneath it.

    With `everywhere` in every thread. Of two layers the one of greater `depth` is beneath, else the earlier one. An
    :class:`Attribute` replaces an attribute. Raises ValueError where a method was replaced on `target` itself, which
    would hide ours.
    """
    hidden = [name for name in members if name in vars(target) and not isinstance(members[name], Attribute)]
    if hidden:
        raise ValueError(f"{type(target).__name__}.{hidden[0]} was replaced on the object itself: undo that first")
    layer = _Layer(members, None if everywhere else threading.current_thread(), depth)
    try:  # from here on, as an interrupt may come before the block
        with _CHANGING:
            base, layers = _layers(target)
            _put_on(target, base, tuple(sorted((*layers, layer), key=lambda own: -own.depth)))
        yield
    finally:
        with _CHANGING:
            base, layers = _layers(target)
            _put_on(target, base, tuple(other for other in layers if other is not layer))


@contextlib.contextmanager
def uncovered() -> Iterator[None]:
    """In the block and its thread objects do as without any layer."""
    token = _UNCOVERED.set(True)
    try:
        yield
    finally:
        _UNCOVERED.reset(token)


def class_beneath(target: Any) -> type:
    """The class of `target` without any layer."""
    return _layers(target)[0]


@dataclass(frozen=True, eq=False)
class _Layer:
    members: dict[str, Callable[..., Any] | Attribute]
    thread: threading.Thread | None  # not its number, which a later thread may have again; None: every thread
    depth: int

    def over(self, below: type) -> dict[str, Any]:
        """The members of a class over `below`."""
        return {
            name: self._attribute(name, member, below)
            if isinstance(member, Attribute)
            else self._method(member, getattr(below, name))
            for name, member in self.members.items()
        }

    @property
    def asked(self) -> bool:
        """Whether the thread that asks is the layer's."""
        return not _UNCOVERED.get() and self.thread in (None, threading.current_thread())

    def _method(self, own: Callable[..., Any], beneath: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(beneath)
        def method(target: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.asked:
                return beneath(target, *args, **kwargs)
            return own(functools.partial(beneath, target), *args, **kwargs)

        return method

    def _attribute(self, name: str, own: Attribute, below: type) -> property:
        found = inspect.getattr_static(below, name, None)
        beneath = found if isinstance(found, property) else None

        def get(target: Any) -> Any:
            if not beneath and name not in vars(target):
                raise AttributeError(f"{below.__name__!r} object has no attribute {name!r}")
            value = beneath.__get__(target) if beneath else vars(target)[name]
            return own.get(value) if self.asked else value

        def put(target: Any, value: Any) -> None:
            if self.asked and own.put(value):
                return
            if beneath:
                beneath.__set__(target, value)
            else:
                vars(target)[name] = value

        return property(get, put)


class _Covers(type):
    """The type of classes with layers, which are equal to the class beneath them."""

    _fastsample_layers: tuple[type, tuple[_Layer, ...]]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A new object, which has no layers."""
        return cls._fastsample_layers[0](*args, **kwargs)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls._fastsample_layers[0]

    def __hash__(cls) -> int:
        return hash(cls._fastsample_layers[0])


def _layers(target: Any) -> tuple[type, tuple[_Layer, ...]]:
    """The class of `target` without layers, and these."""
    kind = type(target)
    return kind._fastsample_layers if isinstance(kind, _Covers) else (kind, ())


def _put_on(target: Any, base: type, layers: tuple[_Layer, ...]) -> None:
    """Give `target` the class `base` under `layers`."""
    kind = base
    for index, layer in enumerate(layers, 1):
        held = {"_fastsample_layers": (base, layers[:index]), "__reduce_ex__": _reduced}
        kind = cover(base, kind, held | layer.over(kind))
    object.__setattr__(target, "__class__", kind)


def cover(base: type, over: type, members: dict[str, Any]) -> type:
    """A class over class `over` with `members`, which is equal to `base` and looks like it."""
    make = _Covers if type(base) is type else type("_Covers", (_Covers, type(base)), {})
    names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
    kind: type = make(base.__name__, (over,), names | members)
    return kind


def reduced(target: Any, base: Any, protocol: Any) -> Any:
    """How to copy or pickle `target`: as one of class `base`, its own."""
    make, arguments, *rest = base.__reduce_ex__(target, protocol)
    # pickle takes `copyreg.__newobj__` for the class that the object has now, and no other
    make = _new if make is copyreg.__newobj__ else make  # type: ignore[attr-defined]
    return make, tuple(base if part is type(target) else part for part in arguments), *rest


def _reduced(target: Any, protocol: Any) -> Any:
    return reduced(target, class_beneath(target), protocol)


def _new(kind: type, *arguments: Any) -> Any:
    return kind.__new__(kind, *arguments)
