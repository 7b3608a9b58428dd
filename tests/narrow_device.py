"""A device without float64, as MPS is: tensors that say they are on "meta", and are computed on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NARROW = torch.device("meta")
MAY_MIX = ("aten.index", "aten._index_put", "aten.copy_", "aten._to_copy")  # with tensors on the CPU


class OnDevice(Tensor):
    """A wrapper of a CPU tensor that reports NARROW as its device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=NARROW
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class NarrowDevice(TorchDispatchMode):
    """Inside, tensors can be made on NARROW; float64 there is a TypeError, mixing devices a RuntimeError."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def on_device(tensor: Tensor) -> Tensor:
    return OnDevice(tensor)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    if there and not str(func).startswith(MAY_MIX) and any(t.device.type == "cpu" and t.dim() for t in tensors):
        raise RuntimeError(f"{func}: tensors on two devices")
    target = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
    narrow = bool(there) if target is None else target == NARROW
    if narrow and target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not narrow or out is None:
        return out
    if func._schema.is_mutable and there:  # the same object comes back
        written = kwargs.get("out", args[0])
        _check(written)
        return written
    return tree_map(_wrapped, out)


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _wrapped(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    _check(value)
    return OnDevice(value)


def _check(value: Any) -> None:
    if isinstance(value, Tensor) and value.dtype == torch.float64:
        raise TypeError("the device has no float64")
