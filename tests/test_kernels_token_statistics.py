"""token_statistics against a float64 reference, by both backends; compiled where there is a GPU, else interpreted."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from fastsample_kernels import Gumbel, TokenStatistics, token_statistics, use_backend
from kernel_inputs import DEVICE, DTYPES
from kernel_inputs import random as normal
from torch import Tensor

random = functools.partial(normal, scale=4.0)
SPLIT = 20001  # logits a row, of which the interpreter's 8 multiprocessors make three parts
pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:(invalid|divide|All-NaN):RuntimeWarning"),  # NumPy, in the interpreter
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),
]


def value(number: float) -> Tensor:
    return torch.tensor(number, device=DEVICE)


def gumbel(temperature: float = 1.0, seed: Tensor | int = 5, offset: int = 0) -> Gumbel:
    return Gumbel(value(temperature), torch.as_tensor(seed, device=DEVICE), value(offset))


def assert_right(found: TokenStatistics, logits: Tensor, temperature: Tensor | None = None) -> None:
    """Values exact. An exponent errs by 2^-24 of itself and so do the terms: 2^-24 (4 max|x| + 64) in logsumexp."""
    exact = logits.double()
    top = exact.topk(min(2, logits.shape[-1]), -1).values
    scaled = exact if temperature is None else exact / temperature.double().expand(logits.shape[:-1])[..., None]
    logsumexp = scaled.logsumexp(-1)
    entropy = torch.special.entr((scaled - logsumexp[..., None]).exp()).sum(-1)
    finite = torch.where(scaled.isfinite(), scaled, 0.0)
    bound = 2.0**-24 * (4 * finite.abs().amax(-1) + 64)
    assert torch.equal(found.token, exact.argmax(-1))
    assert torch.equal(found.top1.double(), top[..., 0])
    second = top[..., 1] if logits.shape[-1] > 1 else torch.full_like(top[..., 0], -math.inf)
    assert torch.equal(found.top2.double(), second)
    assert ((found.logsumexp.double() - logsumexp).abs() <= bound).all()
    assert ((found.entropy.double() - entropy).abs() <= 3 * bound * (1 + entropy)).all()


@pytest.mark.parametrize("vocabulary", [1, 2, 63, 100, 2000, SPLIT])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_size(dtype: torch.dtype, vocabulary: int) -> None:
    logits = random(3, vocabulary, dtype=dtype)
    found = token_statistics(logits)
    assert_right(found, logits)
    assert found.token.dtype == torch.int64
    assert found.sample is None
    assert {found.top1.dtype, found.top2.dtype, found.logsumexp.dtype, found.entropy.dtype} == {torch.float32}


def test_the_largest_vocabulary() -> None:
    logits = random(1, 262144, dtype=torch.bfloat16)
    assert_right(token_statistics(logits), logits)


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 0, 7), (2, 3, 7), (2, 1, 2, 7)])
def test_results_have_the_leading_dimensions(shape: tuple[int, ...]) -> None:
    found = token_statistics(random(*shape), gumbel=gumbel())
    assert all(field is not None and field.shape == shape[:-1] for field in found)


@pytest.mark.parametrize(
    "places", [(1, 2), (0, 1023), (3, 1024), (1023, 2500), (5, 19999), (8192, 20000), (16384, 16385)]
)
def test_ties_go_to_the_lowest_index(places: tuple[int, int]) -> None:
    logits = random(2, SPLIT).clamp_max(9)
    logits[0, list(places)] = 10.0
    logits[1, list(places)] = 10.0
    logits[1, places[0]] = 11.0
    found = token_statistics(logits)
    assert found.token.tolist() == [places[0]] * 2
    assert found.top1.tolist() == [10.0, 11.0]
    assert found.top2.tolist() == [10.0, 10.0]


def test_equal_logits() -> None:
    for vocabulary in (5, 3000, SPLIT):
        found = token_statistics(torch.full((1, vocabulary), 3.0, device=DEVICE))
        assert found.token.tolist() == [0]
        assert found.top2.tolist() == [3.0]
        assert found.entropy.item() == pytest.approx(math.log(vocabulary), rel=1e-6)
        assert found.logsumexp.item() == pytest.approx(3 + math.log(vocabulary), rel=1e-6)


@pytest.mark.parametrize("vocabulary", [100, SPLIT])
def test_nan_in_gives_nan_out_in_its_row_alone(vocabulary: int) -> None:
    logits = random(4, vocabulary)
    logits[1, 57] = math.nan
    logits[2, -1] = math.nan
    logits[2, -2] = math.inf
    logits[3] = math.nan
    found = token_statistics(logits, gumbel=gumbel())
    for field in (found.top1, found.top2, found.logsumexp, found.entropy, found.sample_logit):
        assert field is not None
        assert field.isnan().tolist() == [False, True, True, True]
    assert found.sample is not None
    assert found.token.tolist()[1:] == found.sample.tolist()[1:] == [57, vocabulary - 1, 0]
    assert_right(TokenStatistics(*(field[:1] for field in found[:5])), logits[:1])


@pytest.mark.parametrize("vocabulary", [100, SPLIT])
def test_infinite_logits(vocabulary: int) -> None:
    logits = random(4, vocabulary, dtype=torch.bfloat16)
    logits[0, 10:] = -math.inf  # all after the first part
    logits[1, :-5] = -math.inf  # all before the last
    logits[2] = -math.inf
    logits[3, 7] = math.inf
    found = token_statistics(logits, gumbel=gumbel())
    assert_right(TokenStatistics(*(field[:2] for field in found[:5])), logits[:2])
    assert found.token.tolist()[2:] == [0, 7]
    assert found.top1.tolist()[2:] == found.logsumexp.tolist()[2:] == [-math.inf, math.inf]
    assert found.top2[2] == -math.inf
    assert found.top2[3] == logits[3].float().where(logits[3] != math.inf, -math.inf).max()
    assert found.entropy[2:].isnan().all()
    assert found.sample is not None
    assert found.sample.tolist()[2:] == [0, 7]


def test_one_token_left_has_entropy_zero() -> None:
    logits = torch.full((2, 3000), -math.inf, device=DEVICE)
    logits[0, 2999] = 4.0
    logits[1] = 0.0
    logits[1, 5] = 200.0
    found = token_statistics(logits)
    assert found.token.tolist() == [2999, 5]
    assert found.entropy.tolist() == [0.0, 0.0]
    assert found.logsumexp.tolist() == [4.0, 200.0]


LAYOUTS = {
    "positions of a block": lambda x: x[:, 3:6],
    "every other row": lambda x: x[:, ::2],
    "a wider table": lambda x: x[..., :77],
    "rows exchanged": lambda x: x.transpose(0, 1),
    "vocabulary first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "expanded": lambda x: x[:1, :1].expand(3, 4, -1),
    "three strides": lambda x: x[:, :6].unflatten(1, (3, 2)).transpose(0, 2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(layout: str) -> None:
    logits = LAYOUTS[layout](random(2, 8, 90))
    assert_right(token_statistics(logits), logits)


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (2, 3)])
@pytest.mark.parametrize("vocabulary", [63, SPLIT])
def test_temperature_of_rows(shape: tuple[int, ...], vocabulary: int) -> None:
    logits, temperature = random(2, 3, vocabulary), random(*shape).abs() + 0.3
    assert_right(token_statistics(logits, temperature=temperature), logits, temperature)


def test_both_backends_draw_the_same_tokens() -> None:
    logits = random(2, 3, SPLIT, scale=1.0)
    for noise in (gumbel(0.8), gumbel(1.0, torch.tensor([[5], [6]]), 9)):
        found = token_statistics(logits, gumbel=noise)
        with use_backend("torch"):
            expected = token_statistics(logits, gumbel=noise)
        assert found.sample is not None
        assert expected.sample is not None
        assert torch.equal(found.sample, expected.sample)
        assert len(set(found.sample.flatten().tolist())) == 6
        assert torch.equal(found.sample_logit, logits.gather(-1, found.sample[..., None])[..., 0])


def test_draws_follow_the_softmax(backend: str) -> None:
    """Counts of 5 tokens within 5 standard deviations, at temperature 2."""
    rows = 20000 if backend == "torch" or DEVICE == "cuda" else 80
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0, -math.inf], device=DEVICE).expand(rows, 5)
    found = token_statistics(logits, gumbel=gumbel(2.0))
    assert found.sample is not None
    expected = rows * (logits[0] / 2).softmax(0)
    deviation = (expected * (1 - expected / rows)).sqrt()
    assert ((found.sample.bincount(minlength=5) - expected).abs() <= 5 * deviation).all()


def test_temperature_zero_draws_the_arg_max() -> None:
    found = token_statistics(random(4, 100), gumbel=gumbel(0.0))
    assert found.sample is not None
    assert torch.equal(found.sample, found.token)
    assert torch.equal(found.sample_logit, found.top1)


def test_a_sequence_draws_the_same_whatever_its_batch() -> None:
    logits, seeds = random(1, 5, 50, scale=0.0).expand(3, 5, 50), torch.tensor([[3], [4], [3]])
    every = token_statistics(logits, gumbel=gumbel(1.0, seeds)).sample
    alone = token_statistics(logits[1:2], gumbel=gumbel(1.0, seeds[1:2])).sample
    later = token_statistics(logits[1:2], gumbel=gumbel(1.0, seeds[1:2], 1)).sample
    assert every is not None
    assert alone is not None
    assert torch.equal(every[1], alone[0])
    assert torch.equal(every[0], every[2])
    assert not torch.equal(every[0], every[1])
    assert not torch.equal(alone, later)
    assert len(set(alone[0].tolist())) > 1


def test_vmap_is_more_rows() -> None:
    logits, temperature = random(4, 3, 60), random(3, 4).abs() + 0.5
    apply = torch.func.vmap(lambda x, t: tuple(token_statistics(x, temperature=t))[:5], in_dims=(1, 0))
    expected = token_statistics(logits.transpose(0, 1), temperature=temperature)
    for found, field in zip(apply(logits, temperature), expected, strict=False):
        torch.testing.assert_close(found, field)
    drawn = torch.func.vmap(lambda x: token_statistics(x, gumbel=gumbel()).sample)(logits)
    assert torch.equal(drawn, token_statistics(logits, gumbel=gumbel()).sample)


def test_torch_compile_takes_it_whole() -> None:
    logits = random(2, 70)

    def confidence(x: Tensor) -> Tensor:
        found = token_statistics(x * 2, gumbel=gumbel())
        return (found.top1 - found.logsumexp).exp() + found.sample

    compiled = torch.compile(confidence, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), confidence(logits))


@pytest.mark.parametrize("vocabulary", [1, 7, SPLIT])
def test_an_excluded_token_is_left_out(vocabulary: int) -> None:
    """At either end and in the middle of a row, the largest or NaN; in every part of a split row."""
    for excluded in {0, vocabulary // 2, vocabulary - 1}:
        logits = random(3, vocabulary)
        logits[0, excluded], logits[1, excluded] = 99.0, math.nan
        hidden = logits.clone()
        hidden[:, excluded] = -math.inf
        noise = gumbel(1.0, torch.arange(3))
        found = token_statistics(logits, gumbel=noise, excluded=excluded)
        for ours, theirs in zip(found, token_statistics(hidden, gumbel=noise), strict=True):
            assert torch.equal(ours.nan_to_num(7.0), theirs.nan_to_num(7.0))
        vmapped = torch.func.vmap(lambda x, e=excluded: token_statistics(x, excluded=e).token)(logits)
        assert torch.equal(vmapped, found.token)


def test_the_operation_is_well_formed() -> None:
    for arguments in ((None,) * 4, (None, None, None, None, 3), (value(2.0), *gumbel())):
        torch.library.opcheck(torch.ops.fastsample.token_statistics.default, (random(2, 3, 50), *arguments))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(())}, r"\(\)"),
        ({"logits": torch.zeros(2, 0)}, "V from 1 to 262144"),
        ({"logits": torch.zeros(1, 1).expand(2, 262145)}, "V from 1 to 262144"),
        ({"logits": torch.zeros(2, 3).double()}, "float64"),
        ({"temperature": torch.ones(3)}, r"temperature is .* broadcast to the rows' shape \(2,\)"),
        ({"temperature": torch.ones(1, 2)}, "temperature is"),
        ({"temperature": torch.ones(2, dtype=torch.int64)}, "must be floating"),
        ({"gumbel": Gumbel(torch.ones(()), torch.ones(()), torch.tensor(0))}, "seed is .* must be int64"),
        ({"temperature": torch.ones((), device="meta")}, "temperature is on meta"),
        ({"excluded": 5}, "excluded = 5: give a token of the vocabulary of 5"),
        ({"excluded": -1}, "excluded = -1"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_statistics(**{"logits": torch.zeros(2, 5), **change})
