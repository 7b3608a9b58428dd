"""The kernels' calls that are checked and timed, each beside the same in torch as one would write it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from fastsample_kernels import Gumbel, WeightedStep, linear_step, token_statistics, triangular_mix, use_backend
from torch import Tensor

from gpu_parts.timing import DEVICE, Run


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


def step_case(name: str, shape: tuple[int, ...], history: int) -> Case:
    """A multistep solver's step in bfloat16 with float32 history: writes the next sample and the new entry."""
    half, count = torch.bfloat16, 2 + history
    inputs = [random(*shape, dtype=half) for _ in range(2)] + [random(*shape) for _ in range(history)]
    table, index = random(20, 2, count), torch.tensor(3, device=DEVICE)
    out = [torch.full(shape, torch.nan, device=DEVICE, dtype=dtype) for dtype in (half, torch.float32)]
    c = table[3].tolist()

    def eager() -> list[Tensor]:
        sums = [sum(w * v for w, v in zip(row, inputs, strict=True)) for row in c]
        return [total.to(dtype) for total, dtype in zip(sums, (half, torch.float32), strict=True)]

    def check() -> None:
        found = linear_step(inputs, table, index, out=out)
        for result, weights in zip(found, table[3].double(), strict=True):
            terms = torch.stack([w * v.double() for w, v in zip(weights, inputs, strict=True)])
            assert_close(result, terms.sum(0), terms.abs().sum(0), count + 4)

    run = lambda: linear_step(inputs, table, index, out=out)  # noqa: E731
    return Case("linear_step", name, run, eager, nbytes(*inputs, *out), check)


def weighted_case(name: str, shape: tuple[int, ...], history: int, *, shift: int = 0) -> Case:
    """The same step as the sampling loop launches it; `shift` elements from where 16 bytes begin."""
    half, dtypes, count = torch.bfloat16, (torch.bfloat16, torch.float32), 2 + history
    inputs = [random(*shape, dtype=half) for _ in range(2)] + [random(*shape) for _ in range(history)]
    if shift:
        size = inputs[0].numel()
        inputs = [random(size + shift, dtype=value.dtype)[shift:].view(shape) for value in inputs]
    weights, step = torch.randn(2, count), WeightedStep()
    arguments, c = tuple(weights.flatten().tolist()), weights.tolist()

    def eager() -> list[Tensor]:
        sums = [sum(w * v for w, v in zip(row, inputs, strict=True)) for row in c]
        return [total.to(dtype) for total, dtype in zip(sums, dtypes, strict=True)]

    def check() -> None:
        for _ in range(2):  # what Triton launches, and what is bound then
            found = step(inputs, arguments, dtypes)
            assert found is not None
            for result, row in zip(found, weights.double(), strict=True):
                terms = torch.stack([w * v.double() for w, v in zip(row, inputs, strict=True)])
                assert_close(result, terms.sum(0), terms.abs().sum(0), count + 4)

    moved = nbytes(*inputs) + 6 * inputs[0].numel()
    return Case("weighted_step", name, lambda: step(inputs, arguments, dtypes), eager, moved, check)


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


def cases(*, smoke: bool) -> Iterator[Case]:
    """Latents at batch 1 (Flux packed, a video of 81 frames), samples by size, windows, vocabularies."""
    if smoke:
        yield step_case("tiny", (2, 3, 21), 2)
        yield step_case("tiny, no history", (2, 63), 0)
        yield weighted_case("tiny", (2, 3, 16), 2)
        yield weighted_case("tiny, off 16 bytes", (2, 3, 16), 1, shift=1)
        yield mix_case("N 3", 3, 63)
        yield token_case("1 x 9000 bfloat16", 1, 9000, torch.bfloat16)
        yield token_case("2 x 100 float32, Gumbel", 2, 100, torch.float32, gumbel=True)
        yield mix_case("N 1", 1, 100)
        return
    latents = {
        "SD1.5": (1, 4, 64, 64),
        "SDXL": (1, 4, 128, 128),
        "Flux": (1, 4096, 64),
        "video": (1, 16, 21, 60, 104),
    }
    for name, shape in latents.items():
        yield step_case(f"{name}, history 2", shape, 2)
        yield weighted_case(f"{name}, history 2", shape, 2)
    yield weighted_case("SDXL off 16 bytes, history 2", latents["SDXL"], 2, shift=1)
    yield weighted_case("odd sizes, history 1", (3, 4, 63, 65), 1)
    for mib in (16, 64):  # of the sample, which is bfloat16
        for history in (0, 2, 8):
            yield weighted_case(f"{mib} MiB, history {history}", (1, mib << 19), history)
    for N, size in ((8, 1 << 16), (16, 1 << 18), (32, 1 << 18), (64, 1 << 20)):
        yield mix_case(f"N {N}, {size} columns", N, size)
    for rows, vocabulary in ((1, 126464), (32, 126464), (256, 126464), (1024, 151936)):
        yield token_case(f"{rows} x {vocabulary} bfloat16", rows, vocabulary, torch.bfloat16)
    yield token_case("32 x 126464 bfloat16, Gumbel", 32, 126464, torch.bfloat16, gumbel=True)
    yield token_case("256 x 50257 float32", 256, 50257, torch.float32)


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


def check_streams() -> None:
    """Bound launches go to the stream that is current, from each of two threads, behind that stream's own work."""
    step, weights = WeightedStep(), (1.0, 2.0)
    x = random(1 << 22)
    step([x, x], weights, [torch.float32])
    wrong: list[str] = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
            for turn in range(50):
                value = torch.zeros_like(x)
                torch.cuda._sleep(100000)
                value.fill_(number + turn)  # late: a launch on another stream would read zeros
                (found,) = step([value, value], weights, [torch.float32]) or (value,)
                if not bool((found == 3 * (number + turn)).all()):
                    wrong.append(f"thread {number}, turn {turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def check_long() -> None:
    """More elements than 32 bits count: the last ones are right."""
    size = 2**31 + 2048
    x, y = (torch.zeros(size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    x[-3:], y[-3:] = 1.0, 4.0
    for _ in range(2):
        (found,) = WeightedStep()([x, y], (1.0, 0.5), [torch.bfloat16]) or (x,)
        assert found[-4:].tolist() == [0.0, 3.0, 3.0, 3.0]
        del found
    table, index = torch.tensor([[[1.0, 0.5]]], device=DEVICE), torch.tensor(0, device=DEVICE)
    (found,) = linear_step([x, y], table, index)
    assert found[-4:].tolist() == [0.0, 3.0, 3.0, 3.0]
