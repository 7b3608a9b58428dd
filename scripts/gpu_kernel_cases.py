"""The calls that gpu_kernels.py checks and times, each beside the same in torch as one would write it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from fastsample_kernels import (
    Gumbel,
    Noise,
    guidance_factor,
    linear_step,
    token_statistics,
    triangular_mix,
    use_backend,
)
from gpu_timing import DEVICE, Run
from torch import Tensor


@dataclass
class Case:
    """A call of a kernel, the same by torch as one would write it, what must move, and the largest error allowed."""

    operation: str
    name: str
    kernel: Run
    eager: Run
    bytes: int
    check: Callable[[], None]


def random(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, device=DEVICE)).to(dtype)


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def assert_close(found: Tensor, expected: Tensor, size: Tensor, terms: int) -> None:
    """|err| <= K 2^-24 sum|c_k x_k| + u ulp(ref); the interpreter truncates bfloat16."""
    info = torch.finfo(found.dtype)
    ulp = info.eps * torch.exp2(expected.abs().clamp_min(info.smallest_normal).log2().floor())
    excess = (found.double() - expected).abs() - terms * 2.0**-24 * size - (0.5 if DEVICE.type == "cuda" else 1) * ulp
    assert (excess <= 0).all(), f"beyond the bound by {excess.max()}"  # NaN is not below either


def step_case(name: str, shape: tuple[int, ...], history: int, *, guided: bool = False, noise: bool = False) -> Case:
    """A multistep solver's step in bfloat16 with float32 history: writes the next sample and the new entry."""
    half, count = torch.bfloat16, 2 + history
    inputs = [random(*shape, dtype=half) for _ in range(2)] + [random(*shape) for _ in range(history)]
    table, index, scale = (
        random(20, 2, count + noise),
        torch.tensor(3, device=DEVICE),
        torch.tensor(5.0, device=DEVICE),
    )
    out = [torch.full(shape, torch.nan, device=DEVICE, dtype=dtype) for dtype in (half, torch.float32)]
    options: dict[str, Any] = {"uncond": random(*shape, dtype=half), "guidance": scale} if guided else {}
    if noise:
        options["noise"] = Noise(torch.tensor(1, device=DEVICE), torch.tensor(0, device=DEVICE))
    c = table[3].tolist()

    def eager() -> list[Tensor]:
        values = list(inputs)
        if guided:
            values[1] = options["uncond"] + 5.0 * (values[1] - options["uncond"])
        if noise:
            values.append(torch.randn_like(values[0]))
        sums = [sum(w * v for w, v in zip(row, values, strict=True)) for row in c]
        return [total.to(dtype) for total, dtype in zip(sums, (half, torch.float32), strict=True)]

    def check() -> None:
        found = linear_step(inputs, table, index, out=out, **options)
        values = [value.double() for value in inputs]
        if guided:
            values[1] = options["uncond"].double() + 5 * (values[1] - options["uncond"].double())
        if noise:
            zero = torch.zeros_like(inputs[0], dtype=torch.float32)
            unit = torch.zeros_like(table)[:, :1, -2:] + torch.tensor([0.0, 1.0], device=DEVICE)
            values.append(linear_step([zero], unit, index, noise=options["noise"])[0].double())
        for result, weights in zip(found, table[3].double(), strict=True):
            terms = torch.stack([w * v for w, v in zip(weights, values, strict=True)])
            size = terms.abs().sum(0) + (10 * weights[1].abs() * options["uncond"].abs() if guided else 0)
            assert_close(result, terms.sum(0), size, count + 4)

    moved = nbytes(*inputs, *out, *(value for value in options.values() if isinstance(value, Tensor)))
    return Case(
        "linear_step", name, lambda: linear_step(inputs, table, index, out=out, **options), eager, moved, check
    )


def mix_case(name: str, N: int, size: int) -> Case:
    a, B, x_T, M = random(N), random(N, N).tril(), random(size), random(N, size)
    out = torch.full((N, size), torch.nan, device=DEVICE)

    def check() -> None:
        expected = a.double()[:, None] * x_T.double() + B.double() @ M.double()
        size_ = a.double().abs()[:, None] * x_T.double().abs() + B.double().abs() @ M.double().abs()
        assert_close(triangular_mix(a, x_T, B, M, out=out), expected, size_, N + 2)

    run = lambda: triangular_mix(a, x_T, B, M, out=out)  # noqa: E731
    return Case("triangular_mix", name, run, lambda: torch.addmm(a[:, None] * x_T, B, M), nbytes(x_T, M, out), check)


def token_case(name: str, rows: int, vocabulary: int, dtype: torch.dtype, *, gumbel: bool = False) -> Case:
    logits = random(rows, vocabulary, dtype=dtype, scale=4.0)
    integers = (torch.tensor(1, device=DEVICE), torch.tensor(0, device=DEVICE))
    noise = Gumbel(torch.tensor(1.0, device=DEVICE), *integers) if gumbel else None

    def eager() -> tuple[Tensor, ...]:
        p = logits.float()
        top = p.topk(2, -1)
        drawn = (p - torch.log(-torch.log(torch.rand_like(p)))).argmax(-1) if gumbel else top.indices
        return top.values, top.indices, p.logsumexp(-1), torch.special.entr(p.softmax(-1)).sum(-1), drawn

    def check() -> None:
        found, exact = token_statistics(logits, gumbel=noise), logits.double()
        logsumexp, top = exact.logsumexp(-1), exact.topk(2, -1).values
        entropy = torch.special.entr((exact - logsumexp[:, None]).exp()).sum(-1)
        bound = 2.0**-24 * (4 * exact.abs().amax(-1) + 64)
        assert torch.equal(found.token, exact.argmax(-1))
        assert torch.equal(torch.stack((found.top1, found.top2), -1).double(), top)
        assert ((found.logsumexp - logsumexp).abs() <= bound).all()
        assert ((found.entropy - entropy).abs() <= 3 * bound * (1 + entropy)).all()
        if found.sample is not None:
            with use_backend("torch"):
                same = token_statistics(logits, gumbel=noise).sample == found.sample
            assert same.float().mean() > 0.99  # logarithms differ in the last digit

    return Case(
        "token_statistics",
        name,
        lambda: token_statistics(logits, gumbel=noise),
        eager,
        nbytes(logits) + 32 * rows,
        check,
    )


def factor_case(name: str, shape: tuple[int, ...]) -> Case:
    cond, uncond = random(*shape, dtype=torch.bfloat16), random(*shape, dtype=torch.bfloat16)
    g, r = torch.tensor(5.0, device=DEVICE), torch.tensor(0.7, device=DEVICE)

    def eager() -> Tensor:
        guided = uncond + 5.0 * (cond - uncond)
        dims = tuple(range(1, cond.dim()))
        return cond.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)

    def check() -> None:
        c, u = cond.double().flatten(1), uncond.double().flatten(1)
        expected = 0.7 * c.std(1) / (u + 5 * (c - u)).std(1) + 0.3
        torch.testing.assert_close(guidance_factor(cond, uncond, g, r).double(), expected, rtol=1e-5, atol=0.0)

    run = lambda: guidance_factor(cond, uncond, g, r)  # noqa: E731
    return Case("guidance_factor", name, run, eager, nbytes(cond, uncond), check)


def cases(*, smoke: bool) -> Iterator[Case]:
    """Latents at batch 1 (Flux packed, a video of 81 frames), samples by size, windows, vocabularies."""
    if smoke:
        yield step_case("tiny", (2, 3, 21), 2, guided=True)
        yield step_case("tiny, noise", (2, 63), 0, noise=True)
        yield mix_case("N 3", 3, 63)
        yield token_case("1 x 9000 bfloat16", 1, 9000, torch.bfloat16)
        yield token_case("2 x 100 float32, Gumbel", 2, 100, torch.float32, gumbel=True)
        yield factor_case("tiny", (2, 100))
        return
    latents = {
        "SD1.5": (1, 4, 64, 64),
        "SDXL": (1, 4, 128, 128),
        "Flux": (1, 4096, 64),
        "video": (1, 16, 21, 60, 104),
    }
    for name, shape in latents.items():
        yield step_case(f"{name}, history 2", shape, 2)
        yield step_case(f"{name}, history 2, guided", shape, 2, guided=True)
    for mib in (16, 64):  # of the sample, which is bfloat16
        for history in (0, 2, 8):
            yield step_case(f"{mib} MiB, history {history}", (1, mib << 19), history)
        yield step_case(f"{mib} MiB, noise", (1, mib << 19), 0, noise=True)
    for N, size in ((8, 1 << 16), (16, 1 << 18), (32, 1 << 18), (64, 1 << 20)):
        yield mix_case(f"N {N}, {size} columns", N, size)
    for rows, vocabulary in ((1, 126464), (32, 126464), (256, 126464), (1024, 151936)):
        yield token_case(f"{rows} x {vocabulary} bfloat16", rows, vocabulary, torch.bfloat16)
    yield token_case("32 x 126464 bfloat16, Gumbel", 32, 126464, torch.bfloat16, gumbel=True)
    yield token_case("256 x 50257 float32", 256, 50257, torch.float32)
    yield factor_case("16 MiB, 8 rows", (8, 1 << 20))


def check_graph() -> None:
    """One captured step, with its index advanced in the graph, replays 20 steps bit for bit as eager."""
    table, first = random(20, 2, 3), random(2, 4, 64, 64, dtype=torch.bfloat16)
    x, history = first.clone(), torch.zeros(first.shape, device=DEVICE)
    index = torch.zeros((), dtype=torch.int64, device=DEVICE)

    def step() -> None:
        linear_step([x, torch.tanh(x), history], table / 4, index, out=[x, history])
        index.add_(1)

    def restart() -> None:
        x.copy_(first)
        history.zero_()
        index.zero_()

    for _ in range(20):
        step()
    expected = x.clone()
    restart()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    restart()
    for _ in range(20):
        graph.replay()
    assert x.isfinite().all()
    assert torch.equal(x, expected), "the graph's steps differ from eager ones"
