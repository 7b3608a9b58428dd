"""linear_step against a float64 reference, by both backends; compiled where there is a GPU, else interpreted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from fastsample_kernels import linear_step
from fastsample_kernels.counter_random import philox
from fastsample_kernels.linear_step import _new
from kernel_inputs import DEVICE, DTYPES, ROUNDING, random
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NumPy, in the interpreter
]


def indices(*values: int) -> Tensor:
    return torch.tensor(values, device=DEVICE)


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    exponent = values.abs().clamp_min(info.smallest_normal).log2().floor()
    return info.eps * torch.exp2(exponent)


def assert_close(result: Tensor, weights: Tensor, inputs: Sequence[Tensor]) -> None:
    """|err| <= K 2^-24 sum|c_k x_k| + u ulp(ref); `weights` [k, ...] broadcast over the inputs."""
    terms = torch.stack([weight * tensor.double() for weight, tensor in zip(weights.double(), inputs, strict=True)])
    expected, size = terms.sum(0), terms.abs().sum(0)
    unit = 2.0**-53 if torch.float64 in (tensor.dtype for tensor in inputs) else 2.0**-24
    bound = (len(inputs) + 1) * unit * size + ROUNDING * ulp(expected, result.dtype)
    assert result.shape == expected.shape
    assert ((result.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("size", [0, 1, 63, 100, 2000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_size(dtype: torch.dtype, size: int) -> None:
    inputs = [random(size, dtype=dtype, seed=k) for k in range(3)]
    table = random(5, 1, 3)
    (result,) = linear_step(inputs, table, indices(3))
    assert result.dtype == dtype
    assert_close(result, table[3, 0], inputs)


@pytest.mark.parametrize("count", range(1, 11))
def test_one_to_ten_inputs_of_mixed_dtypes_and_three_outputs(count: int) -> None:
    inputs = [random(2, 3, 21, dtype=DTYPES[k % 3], seed=k) for k in range(count)]
    table = random(4, 3, count)
    results = linear_step(inputs, table, indices(2), dtypes=DTYPES)
    assert [result.dtype for result in results] == list(DTYPES)
    for j, result in enumerate(results):
        assert_close(result, table[2, j], inputs)


def test_any_float64_input_makes_the_sum_float64() -> None:
    inputs = [random(100).double() / 3, random(100, seed=1)]
    table = random(2, 1, 2).double() / 3
    (result,) = linear_step(inputs, table, indices(1))
    assert result.dtype == torch.float64
    assert_close(result, table[1, 0], inputs)


def test_preallocated_outputs_are_written_whole_and_may_be_an_input() -> None:
    sample, output = random(3, 700), random(3, 700, dtype=torch.bfloat16)
    history = torch.full((3, 700), math.nan, device=DEVICE)
    before, table = sample.clone(), random(2, 2, 2)
    results = linear_step([sample, output], table, indices(0), out=[sample, history])
    assert results[0] is sample
    assert results[1] is history
    for j, result in enumerate(results):
        assert_close(result, table[0, j], [before, output])


def test_weight_zero_does_not_read_and_others_propagate() -> None:
    table = torch.tensor([[[1.0, 0.0, 2.0], [1.0, 3.0, 0.0]]], device=DEVICE)
    bad = torch.tensor([math.nan, math.inf, -math.inf, 1.0], device=DEVICE)
    ones = torch.ones(4, device=DEVICE)
    clean, reached = linear_step([ones, bad, ones], table, indices(0))
    assert clean.tolist() == [3.0] * 4
    assert reached.isnan().tolist() == [True, False, False, False]
    assert reached[1:].tolist() == [math.inf, -math.inf, 4.0]


def test_all_weights_zero_is_zero() -> None:
    (result,) = linear_step([random(63) * math.inf], torch.zeros(1, 1, 1, device=DEVICE), indices(0))
    assert result.tolist() == [0.0] * 63


def test_rows_at_their_own_steps() -> None:
    inputs = [random(4, 3, 50, dtype=dtype) for dtype in (torch.float32, torch.float16)]
    table, index = random(6, 2, 2), indices(5, 0, 3, 3)
    for j, result in enumerate(linear_step(inputs, table, index)):
        assert_close(result, table[index, j].T[:, :, None, None], inputs)


def test_one_graph_capture_replays_steps_by_the_index_on_the_device() -> None:
    """The index tensor alone selects the step: the same call with another value in place is the next step."""
    inputs, table, index = [random(63), random(63, seed=1)], random(3, 1, 2), indices(0)
    for step in range(3):
        assert_close(linear_step(inputs, table, index)[0], table[step, 0], inputs)
        index.add_(1)


def test_a_step_outside_the_table(backend: str) -> None:
    inputs, table = [random(3, 10)], random(4, 1, 1)
    (result,) = linear_step(inputs, table, indices(0, 4, -1))
    assert result.isnan().any(1).tolist() == [False, True, True]
    if backend == "torch" and DEVICE == "cpu":
        with pytest.raises(IndexError, match="4 steps"):
            linear_step(inputs, table, indices(4))
    else:
        assert linear_step(inputs, table, indices(4))[0].isnan().all()


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    "every other": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
    "expanded": lambda x: x[:, :, :, :1].expand_as(x),
    "a chunk": lambda x: torch.cat([x, x]).chunk(2)[1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", [[1], [1, 0]], ids=["one step", "rows"])
def test_any_strides(layout: str, index: list[int]) -> None:
    plain = [random(2, 4, 5, 3, seed=k) for k in range(2)]
    table = random(2, 1, 2)
    weights = table[indices(*index), 0].T[..., None, None, None]
    changed = [LAYOUTS[layout](tensor) for tensor in plain]
    (result,) = linear_step(changed, table, indices(*index))
    assert_close(result, weights, changed)
    assert result.is_contiguous(memory_format=torch.channels_last) == (layout == "channels last")
    mixed = [changed[0], plain[1]]
    out = LAYOUTS["transposed"](torch.full_like(plain[0], math.nan))
    linear_step(mixed, table, indices(*index), out=[out])
    assert_close(out, weights, mixed)


def test_the_generator_is_philox() -> None:
    """The known answers of Random123's kat_vectors for philox4x32-10."""
    for counter, key, answer in (
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, -1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ):
        c0, c1, c2, c3 = (torch.tensor(word) for word in counter)
        assert tuple(int(word) for word in philox(torch.tensor(key), (c0, c1, c2, c3))) == answer


def test_vmap_is_a_batch_of_calls() -> None:
    sample, output, table = random(3, 2, 40), random(3, 2, 40, seed=1), random(5, 2, 2)
    index, rows = indices(4, 0, 2), indices(1, 2, 0, 0, 1, 2).reshape(3, 2)
    for steps, in_dims in ((index, 0), (rows, 0), (indices(3), None), (indices(3, 1), None)):
        apply = torch.func.vmap(lambda x, m, i: linear_step([x, m], table, i), (0, 0, in_dims))
        results = apply(sample, output, steps)
        for b in range(3):
            expected = linear_step([sample[b], output[b]], table, steps if in_dims is None else steps[b])
            for result, value in zip(results, expected, strict=True):
                torch.testing.assert_close(result[b], value, rtol=1e-6, atol=1e-6)


def test_torch_compile_takes_it_whole() -> None:
    sample, table, index = random(2, 30), random(3, 2, 2), indices(1)
    target = torch.zeros(2, 30, device=DEVICE)

    def step(x: Tensor, out: Tensor) -> Tensor:
        y, entry = linear_step([x, x * 2], table, index)
        linear_step([y, entry], table[:, :1], index, out=[out])
        return y + entry

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(sample, target), step(sample, expected := torch.zeros_like(target)))
    torch.testing.assert_close(target, expected)


def test_the_operation_is_well_formed() -> None:
    arguments = ([random(2, 3, 4, 5), random(2, 3, 4, 5)], random(3, 2, 2), indices(1), [torch.float32] * 2)
    utilities = ("test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.fastsample.linear_step.default, arguments, test_utils=utilities)


def number_of(x: Tensor) -> int:
    """What a dtype is in C++, as TorchScript says."""
    return x.dtype


def test_dtypes_arrive_as_numbers_in_older_torch() -> None:
    """torch 2.11 hands a list of dtypes to an operation written in Python as a list of numbers."""
    inputs, table = [random(2, 9), random(2, 9, seed=1)], random(1, 3, 2)
    for wanted in (list(DTYPES), [torch.float64, torch.bfloat16, torch.float32]):
        numbers = [torch.jit.script(number_of)(torch.zeros(1, dtype=dtype)) for dtype in wanted]
        assert all(isinstance(number, int) for number in numbers)
        assert [result.dtype for result in _new(inputs, table, indices(0), numbers)] == wanted


def test_gradients_flow() -> None:
    sample, output, table = random(2, 9).requires_grad_(), random(2, 9).requires_grad_(), random(3, 1, 2)
    (result,) = linear_step([sample, output], table, indices(2))
    result.sum().backward()
    assert sample.grad is not None
    assert output.grad is not None
    torch.testing.assert_close(sample.grad, table[2, 0, 0].expand(2, 9))
    torch.testing.assert_close(output.grad, table[2, 0, 1].expand(2, 9))


class Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_is_one_operation() -> None:
    inputs, table, index = [random(8) for _ in range(4)], random(2, 1, 4), indices(1)
    with Counter() as counter:
        linear_step(inputs, table, index)
    assert counter.calls == ["fastsample.linear_step.default"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "inputs holds 0"),
        ({"inputs": [torch.zeros(2, 3)] * 11}, "inputs holds 11"),
        ({"inputs": [torch.zeros(2, 3), torch.zeros(3, 2)]}, r"shaped as inputs\[0\], \(2, 3\)"),
        ({"inputs": [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)]}, "int32"),
        ({"table": torch.zeros(3, 2)}, r"table has shape \(3, 2\)"),
        ({"table": torch.zeros(3, 4, 2)}, "1 to 3 outputs"),
        ({"table": torch.zeros(3, 1, 2).half()}, "float32 or float64"),
        ({"index": torch.zeros(3, dtype=torch.int64)}, "1 or 2 elements"),
        ({"index": torch.zeros(1)}, "must be int64"),
        ({"dtypes": [torch.float32]}, "1 outputs are asked for"),
        ({"out": [torch.zeros(3, 2)] * 2}, r"not of the inputs' shape \(2, 3\)"),
        ({"out": [torch.zeros(2, 3, device="meta")] * 2}, "on cpu"),
        ({"out": [torch.zeros(2, 3)] * 2, "dtypes": [torch.float32] * 2}, "not both"),
        ({"index": torch.zeros(1, dtype=torch.int64, device="meta")}, "a tensor is on meta"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    call = {"inputs": [torch.zeros(2, 3)] * 2, "table": torch.zeros(3, 2, 2), "index": torch.tensor(0), **change}
    with pytest.raises(ValueError, match=message):
        linear_step(**call)
