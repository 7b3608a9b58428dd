"""Key-value windows in models of transformers, through its attention interface: whatever calls it, keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fastsample.decoding.cache import WindowCache

NAME = "fastsample_window"
_current: ContextVar[WindowCache | None] = ContextVar("fastsample_window", default=None)


def window_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> Any:
    """Scaled dot-product attention; inside :func:`windows`, to the keys and values of the whole sequence."""
    cache = _current.get()
    if cache is not None:
        key, value = cache.update(key, value, cache.next_layer())
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


AttentionInterface.register(NAME, window_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def windows(model: Any, cache: WindowCache) -> Iterator[None]:
    """Within it, forwards of `model` in this thread keep their keys and values in `cache`.

    Another thread's forwards of the same model attend as by "sdpa" meanwhile. The model is left as it was.
    """
    before = model.config._attn_implementation
    token = _current.set(cache)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _current.reset(token)
