"""Perturbed-attention guidance, whose attention processors take three branches apart: how one alone gets through."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from fastsample.pipelines.guidance.caller import Caller


def put_back(caller: Caller, module: nn.Module) -> None:
    """Give attention the processors that the pipeline put aside: what a call that is refused would not do."""
    if caller.frame is not None:
        module.set_attn_processor(caller.frame.f_locals["original_attn_proc"])  # type: ignore[operator]


@contextlib.contextmanager
def unperturbed(caller: Caller, module: nn.Module) -> Iterator[None]:
    """In the block attention has the processors that the pipeline put aside when its call began."""
    own: dict[str, Any] = caller.frame.f_locals["original_attn_proc"] if caller.frame is not None else {}
    perturbed = {
        attention: attention.processor
        for name, attention in module.named_modules()
        if type(getattr(attention, "processor", None)).__name__.startswith("PAG")
        and not attention.set_processor(own.get(f"{name}.processor", attention.processor))
    }
    try:
        yield
    finally:
        for attention, processor in perturbed.items():
            attention.set_processor(processor)
