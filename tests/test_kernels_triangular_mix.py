"""triangular_mix against a float64 reference, by both backends; compiled where there is a GPU, else interpreted."""

from __future__ import annotations

import math

import pytest
import torch
from fastsample_kernels import triangular_mix
from kernel_inputs import DEVICE, DTYPES, ROUNDING, random
from torch import Tensor

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),  # NumPy, in the interpreter
]


def lower(N: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random on and below the diagonal, NaN above it."""
    return random(N, N, dtype=dtype).tril() + torch.full((N, N), math.nan, device=DEVICE).triu(1)


def assert_right(X: Tensor, a: Tensor, x_T: Tensor, B: Tensor, M: Tensor) -> None:
    """|err| <= K 2^-24 sum|c_k x_k| + u ulp(ref), K the terms of the longest row."""
    N, x, flat = len(a), x_T.double().reshape(1, -1), M.double().flatten(1)
    weights = B.tril().double()
    expected = a.double()[:, None] * x + weights @ flat
    size = a.double().abs()[:, None] * x.abs() + weights.abs() @ flat.abs()
    info = torch.finfo(X.dtype)
    ulp = info.eps * torch.exp2(expected.abs().clamp_min(info.smallest_normal).log2().floor())
    unit = 2.0**-53 if torch.float64 in (x_T.dtype, M.dtype) else 2.0**-24
    bound = (N + 2) * unit * size + ROUNDING * ulp
    assert X.shape == M.shape
    assert ((X.double().flatten(1) - expected).abs() <= bound).all()


@pytest.mark.parametrize(("N", "size"), [(0, 5), (3, 0), (1, 1), (2, 63), (5, 100), (17, 300)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_size(dtype: torch.dtype, N: int, size: int) -> None:
    a, x_T, B, M = random(N), random(size, dtype=dtype), lower(N), random(N, size, dtype=dtype)
    X = triangular_mix(a, x_T, B, M)
    assert X.dtype == dtype
    assert_right(X, a, x_T, B, M)


def test_several_blocks_of_columns_and_of_rows() -> None:
    for N, size in ((3, 500), (40, 3)):
        a, x_T, B, M = random(N), random(2, size), lower(N), random(N, 2, size)
        assert_right(triangular_mix(a, x_T, B, M), a, x_T, B, M)


@pytest.mark.parametrize("table", [torch.float32, torch.float64], ids=str)
def test_dtypes_may_be_mixed(table: torch.dtype) -> None:
    a, B = random(4, dtype=table), lower(4, table)
    for x, m, out in ((torch.float32, torch.float16, torch.bfloat16), (torch.float64, torch.float32, torch.float64)):
        x_T, M = random(30).to(x), random(4, 30, dtype=m)
        X = triangular_mix(a, x_T, B, M, dtype=out)
        assert X.dtype == out
        if table == torch.float64 or x == torch.float32:
            assert_right(X, a.to(torch.promote_types(x, m)), x_T, B.to(torch.promote_types(x, m)), M)


def test_the_output_may_be_given() -> None:
    a, x_T, B, M = random(4), random(2, 30), lower(4), random(4, 2, 30)
    out = torch.full((4, 2, 30), math.nan, device=DEVICE)
    assert triangular_mix(a, x_T, B, M, out=out) is out
    assert_right(out, a, x_T, B, M)


@pytest.mark.parametrize("N", [4, 20])
def test_nan_reaches_the_rows_that_read_it(N: int) -> None:
    a, x_T, B, M = random(N), random(6), lower(N), random(N, 6)
    M[N - 2, 1] = math.nan
    M[0, 2] = math.inf
    x_T[3] = math.nan
    B[N - 1, N - 2] = 0.0
    a[1] = 0.0
    X = triangular_mix(a, x_T, B, M)
    rows = range(N)
    assert X[:, 1].isnan().tolist() == [i == N - 2 for i in rows]
    assert X[:, 2].tolist() == [math.copysign(math.inf, B[i, 0].item()) for i in rows]
    assert X[:, 3].isnan().tolist() == [i != 1 for i in rows]
    clean = X[:, [0, 4, 5]]
    assert_right(clean, a, x_T[[0, 4, 5]], B, M[:, [0, 4, 5]])


@pytest.mark.parametrize("layout", ["every other row", "columns last", "expanded"])
def test_any_strides(layout: str) -> None:
    a, x_T, B, M = random(4), random(5, 6), lower(4), random(8, 5, 6)
    M = {"every other row": M[::2], "columns last": M[:4].transpose(1, 2).contiguous().transpose(1, 2)}.get(
        layout, M[:1].expand(4, 5, 6)
    )
    B, x_T = B.T.contiguous().T, x_T.T.contiguous().T
    assert_right(triangular_mix(a, x_T, B, M), a, x_T, B, M)


def test_vmap_is_more_columns() -> None:
    a, B, x_T, M = random(3), lower(3), random(2, 9), random(3, 2, 9)
    X = torch.func.vmap(lambda x, m: triangular_mix(a, x, B, m), in_dims=(0, 1), out_dims=1)(x_T, M)
    assert_right(X, a, x_T, B, M)


def test_torch_compile_takes_it_whole() -> None:
    a, B, x_T, M = random(3), lower(3), random(9), random(3, 9)

    def sweep(x: Tensor, m: Tensor) -> Tensor:
        X = triangular_mix(a, x, B, m * 2)
        return triangular_mix(a, x, B, m, out=torch.empty_like(m)) + X

    torch.testing.assert_close(torch.compile(sweep, fullgraph=True, backend="aot_eager")(x_T, M), sweep(x_T, M))


def test_the_operation_is_well_formed() -> None:
    arguments = (random(3), random(4, 5), lower(3).tril(), random(3, 4, 5), torch.bfloat16)
    torch.library.opcheck(torch.ops.fastsample.triangular_mix.default, arguments)


def test_gradients_flow() -> None:
    a, B, x_T, M = random(3), lower(3), random(4).requires_grad_(), random(3, 4).requires_grad_()
    triangular_mix(a, x_T, B, M).sum().backward()
    assert x_T.grad is not None
    assert M.grad is not None
    torch.testing.assert_close(x_T.grad, a.sum().expand(4))
    torch.testing.assert_close(M.grad, B.tril().sum(0)[:, None].expand(3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"M": torch.zeros(3, 5)}, r"M is .*\(3, 5\), x_T .*\(4,\)"),
        ({"x_T": torch.zeros(4, dtype=torch.int64)}, "must be floating"),
        ({"a": torch.zeros(2)}, r"a is .*\(2,\)"),
        ({"B": torch.zeros(3, 2)}, r"B .*\(3, 2\)"),
        ({"B": torch.zeros(3, 3).half()}, "float32 or float64"),
        ({"a": torch.zeros(3, device="meta")}, "a on meta"),
        ({"out": torch.zeros(4, 3).T}, "out must be contiguous"),
        ({"out": torch.zeros(3, 4), "dtype": torch.float32}, "without dtype"),
        ({"out": torch.zeros(3, 4, device="meta")}, "on cpu as M"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    call = {"a": torch.zeros(3), "x_T": torch.zeros(4), "B": torch.zeros(3, 3), "M": torch.zeros(3, 4), **change}
    with pytest.raises(ValueError, match=message):
        triangular_mix(**call)
