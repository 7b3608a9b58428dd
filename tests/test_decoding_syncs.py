"""A forward waits for the device once: no other step of it needs a value on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoding_models import MASK, bundled_kind
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample.decoding import CommitRule

READS = {
    "tolist",
    "item",
    "cpu",
    "numpy",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__iter__",
    "__contains__",
}
"""Functions that bring a value to the host."""
WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "unique_dim",
    "_unique2",
    "is_nonzero",
    "bincount",
}
"""Operations whose value, or whose result's shape, is data."""


class Reads(TorchFunctionMode):
    """Counts calls, also of indexing by a mask, whose result's shape is data."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        mask = name in ("__getitem__", "__setitem__") and _is_mask(args[1])
        self.count += name in READS or mask
        return function(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in parts)


class Waits(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


RULES: dict[str, tuple[CommitRule, dict[str, Any]]] = {
    "low confidence": (fs.LowConfidence(), {}),
    "random, drawn": (fs.Random(), dict(temperature=0.7, top_p=0.9, top_k=5)),
    "origin, dream": (fs.Origin(), dict(schedule="dream", scaled=True)),
    "margin, guided": (fs.Margin(), dict(guidance_scale=0.5)),
    "threshold, ends": (fs.Threshold(0.5), dict(eos_token_id=[3, 4])),
    "factor": (fs.Factor(), {}),
    "entropy-bounded": (fs.EntropyBounded(), {}),
    "hierarchy": (fs.Hierarchy(), {}),
    "prophet": (fs.Prophet((9.0, 6.0, 2.0), region=fs.After((2,), 3)), {}),
    "prefix cache": (fs.Prophet((9.0, 6.0, 2.0)), dict(cache="prefix")),
    "dual cache": (fs.Threshold(0.5), dict(cache="dual", guidance_scale=0.5)),
    "refinement": (fs.Entropy(), dict(refinement=fs.LatentRefinement())),
    "stream": (fs.Threshold(0.5), dict(stream=lambda commits: None)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_forward_waits_once(name: str) -> None:
    """Whole runs, left-padded rows that leave the batch one after the other: one read a forward, and two before."""
    rule, options = RULES[name]
    ids = torch.tensor([[5, 7, 11, 2, 9], [0, 0, 3, 4, 8], [0, 1, 1, 6, 1]])
    mask = (ids != 0).long()
    model = bundled_kind().float()
    generator = torch.Generator().manual_seed(0)

    def run() -> Any:
        return fs.decode_masked(
            model, ids, rule=rule, gen_length=16, block_length=8, mask_token_id=MASK, attention_mask=mask,
            generator=generator, **options,
        )[1]  # fmt: skip

    with Reads() as reads:
        ledger = run()
    with Waits() as waits:
        run()
    before = 3  # right padding?, any padding?, the blocks at the start
    assert reads.count == ledger.forward_calls + before
    assert len(waits.names) == 2  # the two questions about padding


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
    ],
)
def test_a_wait_is_seen(wait: Callable[[torch.Tensor], Any]) -> None:
    with Reads() as reads:
        wait(torch.arange(3.0))
    assert reads.count >= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_waits_once_a_forward() -> None:
    """CUDA's own count: synchronising calls warn."""
    import warnings

    model = bundled_kind().float().cuda()
    ids = torch.randint(0, MASK, (4, 5)).cuda()
    options: dict[str, Any] = dict(rule=fs.Prophet(), gen_length=16, block_length=8, mask_token_id=MASK)
    fs.decode_masked(model, ids, **options)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _, ledger = fs.decode_masked(model, ids, **options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) <= ledger.forward_calls + 8
