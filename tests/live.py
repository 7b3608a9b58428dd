"""What a piece of code does to tensors: its operations, and the memory that it holds."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts operations on tensors, without views, and the bytes that they hold at most."""

    VIEWS = (
        "view",
        "slice",
        "select",
        "transpose",
        "unsqueeze",
        "expand",
        "detach",
        "alias",
        "lift_fresh",
        "permute",
    )

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.live = self.peak = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.operations += function.overloadpacket.__name__.strip("_") not in self.VIEWS
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self._held:
                storage = value.untyped_storage()
                self._held[storage.data_ptr()] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, storage.data_ptr())
        return result

    def _free(self, pointer: int) -> None:
        self.live -= self._held.pop(pointer)
