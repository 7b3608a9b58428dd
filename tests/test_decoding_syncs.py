"""A forward waits for the device once, and asks it for no float64, which Apple's devices lack."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from decoding_models import MASK, VOCABULARY, bundled_kind
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample.decoding import CommitRule
from fastsample.decoding.schedule import quota_and_share

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


def _commits(found: type) -> bool:
    return hasattr(found, "check_block_should_continue")


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
    "risk": (fs.Risk(), {}),
    "entropy, drawn": (fs.Entropy(0.5), {}),
    "checked": (fs.Checked(base=fs.Threshold(0.3)), {}),
    "checked by rows": (fs.Checked(form="rows", base=fs.Threshold(0.3)), dict(guidance_scale=0.5)),
    "WINO": (fs.WINO(0.2, 0.5), {}),
    "KLASS": (fs.KLASS(0.3, 5.0), {}),
    "credit": (fs.Credit(), {}),
    "PUNT": (fs.PUNT(), {}),
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
    steps = int(ledger.committed_at.max())  # PUNT's further forwards do not wait
    assert reads.count == steps + before
    assert len(waits.names) == 2  # the two questions about padding


class Float64(TorchDispatchMode):
    """Fails where an operation gives a float64 tensor."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            assert not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float64, function
        return made


MEASURES: dict[str, tuple[CommitRule, dict[str, Any]]] = {
    f"prophet, by {measure}": (fs.Prophet((9.0, 6.0, 2.0), progress=measure), {}) for measure in ("paper", "tokens")
}


@pytest.mark.parametrize("name", [*RULES, *MEASURES])
def test_no_float64(name: str) -> None:
    """Whole runs, as above: what a rule decides by is integers and float32."""
    rule, options = (RULES | MEASURES)[name]
    ids = torch.tensor([[5, 7, 11, 2, 9], [0, 0, 3, 4, 8]])
    model, mask = bundled_kind().float(), (ids != 0).long()
    with Float64():
        fs.decode_masked(
            model, ids, rule=rule, gen_length=16, block_length=8, mask_token_id=MASK, attention_mask=mask,
            generator=torch.Generator().manual_seed(0), **options,
        )  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name in fs.__all__ if issubclass(type(getattr(fs, name)), type) and _commits(getattr(fs, name))]
)
def test_no_float64_in_diffusers_schedulers(name: str) -> None:
    scheduler = getattr(fs, name)()
    scheduler.set_timesteps(4, block_length=8)
    sample = torch.full((2, 8), MASK)
    with Float64():
        for step in range(4):
            logits = torch.randn(2, 8, VOCABULARY, generator=torch.Generator().manual_seed(step))
            sample = scheduler.step(logits, step, sample, mask_token_id=MASK, return_dict=False)[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.double(),
        lambda x: torch.zeros(2, dtype=torch.float64),
        lambda x: x + torch.eye(2, dtype=torch.float64),
    ],
)
def test_float64_is_seen(make: Callable[[torch.Tensor], Any]) -> None:
    x = torch.ones(2)
    with pytest.raises(AssertionError), Float64():
        make(x)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 27, 64, 100, 333])
def test_schedules_are_exact(steps: int) -> None:
    """The quota is the definition's in fractions, rounded down, and the share the float32 next to it."""
    step, left = (
        grid.reshape(-1) for grid in torch.meshgrid(torch.arange(steps), torch.arange(1, 200, 3), indexing="ij")
    )
    total = left + step
    for schedule in ("even", "dream"):
        quota, share = quota_and_share(schedule, total, left, step, steps)
        for got, part, *now in zip(
            quota.tolist(), share.tolist(), total.tolist(), left.tolist(), step.tolist(), strict=True
        ):
            due = _due(schedule, *now, steps)
            assert got == math.floor(due)
            assert abs(part - Fraction(due, now[1])) <= 2.0**-24 * Fraction(due, now[1])


def _due(schedule: str, total: int, left: int, step: int, steps: int) -> Fraction:
    """Tokens to commit, before rounding down: LLaDA's even parts of a block, or Dream's left (1 - s / t)."""
    if step == steps - 1:
        return Fraction(left)
    if schedule == "even":
        return Fraction(min(total // steps + (step < total % steps), left))
    t, s = (1 - Fraction(999, 1000) * at / steps for at in (step, step + 1))
    return left * (1 - s / t)


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
