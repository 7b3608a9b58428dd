"""What a pipeline's call costs: the evaluations of its denoisers, into a ledger."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fastsample.pipelines.denoisers import hooks_of
from fastsample.sampling.ledger import Ledger


@contextlib.contextmanager
def count(pipe: Any, images: int) -> Iterator[Ledger]:
    """A ledger of what happens to `pipe`'s denoiser (unet or transformer) in the block, for `images` images.

    Raises ValueError when the pipeline has neither.
    """
    denoisers = [getattr(pipe, name, None) for name in ("unet", "transformer", "transformer_2")]
    modules = [module for module in denoisers if isinstance(module, nn.Module)]
    if not modules:
        raise ValueError(
            f"pipe = {type(pipe).__name__} has no unet or transformer whose evaluations could be counted"
        )
    ledger = Ledger(images)

    def counted(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        rows = _rows_evaluated(module)
        if rows is None:
            sample = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
            rows = sample.shape[0] if isinstance(sample, Tensor) else images
        ledger.forward_calls += rows > 0
        ledger.rows += rows

    handles = [module.register_forward_hook(counted, with_kwargs=True) for module in modules]
    try:
        with ledger.running():
            yield ledger
    finally:
        for handle in handles:
            handle.remove()


def _rows_evaluated(module: nn.Module) -> int | None:
    """What a hook that drops part of the batch says of the last call; None where there is no such hook."""
    return next((hook.rows for hook in hooks_of(module).values() if hasattr(hook, "rows")), None)
