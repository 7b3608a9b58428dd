"""What a step and its set-up cost on the host, ours and theirs side by side in one run: Markdown tables.

    OMP_NUM_THREADS=1 python scripts/benchmark_steps.py > steps.md
    OMP_NUM_THREADS=1 python scripts/benchmark_steps.py --repeats 5 --only set-up

Steps. Every contestant takes whole runs of 20 steps, in turn, with the model's output given; a run counts as the
median of its steps 4 to 16. A cell is the median run in microseconds, and in brackets the quartiles of its ratio to
the first column, run by run. The k-diffusion form is written out with Python floats, without its tensors of sigmas.

Latents. Bytes that torch's operations of a step read and write, over those of the sample: every tensor argument is
read once, every result written once, one that is given (`out`) only written; tensors of one element and the making of
empty ones are nothing. One launch of the kernel moves 7 for 2M in bfloat16: sample and output in, history in float32,
the next sample and the new entry out.

Set-up. `set_timesteps` of a class: first on configs that no earlier call has seen, then repeated on one scheduler.
"""

from __future__ import annotations

import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import diffusers
import numpy as np
import torch
import typer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from fastsample.bench.report import markdown_table
from fastsample.sampling import Runner

STEPS = 20
SHAPES = [(1, 4, 8, 8), (1, 4, 64, 64), (1, 4, 128, 128), (1, 16, 128, 128), (8, 16, 128, 128)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SOLVERS = ("ddim", "dpmpp-2m", "dpmpp-2m-sde")
SCHEDULERS = ["AcceleratedScheduler", "DDIMScheduler", "DEISScheduler", "DPMSolverScheduler", "GHVBScheduler"]
SCHEDULERS += ["HeavyBallScheduler", "IPNDMScheduler", "UniPCScheduler"]
Inputs = tuple[Tensor, Tensor, Tensor]
"""Sample, output, noise."""


# --- contestants: each makes a run, which yields its steps, functions of nothing ------------------------------------


def runner(solver: str, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    """Ours, without the scheduler around it."""
    sample, output, noise = inputs
    table = table_of(solver)
    run = Runner(table)
    for index, step in enumerate(table.steps):
        yield functools.partial(run.step, index, sample, output, noise if step.next.noise else None)


def scheduler(solver: str, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    """Ours as diffusers calls it."""
    sample, output, noise = inputs
    made = fs.create_scheduler(solver, {"beta_schedule": "scaled_linear"})
    made.set_timesteps(STEPS)
    for t in made.timesteps:
        yield functools.partial(made.step, output, t, sample, variance_noise=noise, return_dict=False)


def theirs(solver: str, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    """diffusers' DPMSolverMultistep, whatever the solver."""
    sample, output, _ = inputs
    made = diffusers.DPMSolverMultistepScheduler(beta_schedule="scaled_linear")
    made.set_timesteps(STEPS)
    for t in made.timesteps:
        yield functools.partial(made.step, output, t, sample, return_dict=False)


def k_diffusion(solver: str, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    """sample_euler, sample_dpmpp_2m and sample_dpmpp_2m_sde, a step each, with eps for the model's output."""
    x, eps, noise = inputs
    old = x - eps
    for index in range(STEPS):
        sigma, following, h = 10.0 * 0.7**index, 7.0 * 0.7**index, -math.log(0.7)

        def euler(sigma: float = sigma, following: float = following) -> Tensor:
            denoised = x - eps * sigma
            d = (x - denoised) / sigma
            return x + d * (following - sigma)

        def multistep(sigma: float = sigma, following: float = following, h: float = h) -> Tensor:
            denoised = x - eps * sigma
            r = h / h
            mixed = (1 + 1 / (2 * r)) * denoised - (1 / (2 * r)) * old
            return (following / sigma) * x - math.expm1(-h) * mixed

        def stochastic(sigma: float = sigma, following: float = following, h: float = h) -> Tensor:
            denoised = x - eps * sigma
            new = following / sigma * math.exp(-h) * x + -math.expm1(-2 * h) * denoised
            new = new + 0.5 * -math.expm1(-2 * h) * (denoised - old)
            return new + noise.to(x.dtype) * following * math.sqrt(-math.expm1(-2 * h))

        yield {"ddim": euler, "dpmpp-2m": multistep, "dpmpp-2m-sde": stochastic}[solver]


def four_operations(solver: str, inputs: Inputs) -> Iterator[Callable[[], Any]]:
    """What a 2M step cannot do without: four torch operations in the sample's dtype."""
    x, eps, _ = inputs
    history = x.clone()

    def step() -> Tensor:
        entry = torch.add(x, eps, alpha=0.3)
        total = torch.add(entry, history, alpha=0.4)
        total.add_(eps, alpha=0.5)
        return total.mul_(0.6)

    for _ in range(STEPS):
        yield step


CONTESTANTS = {
    "Runner": runner,
    "scheduler": scheduler,
    "k-diffusion form": k_diffusion,
    "diffusers 2M": theirs,
    "four operations": four_operations,
}


def table_of(solver: str) -> fs.Table:
    return fs.build_table(solver, fs.NoiseSchedule.linear_vp(), np.linspace(1, 0.02, STEPS + 1))


# --- measuring ------------------------------------------------------------------------------------------------------


def step_times(repeats: int) -> str:
    rows = []
    for solver in SOLVERS:
        for dtype in DTYPES:
            for shape in SHAPES:
                runs = max(3, repeats // (1 + math.prod(shape) // 50000))
                generator = torch.Generator().manual_seed(0)
                x, eps, noise = torch.randn(3, *shape, generator=generator)
                inputs = x.to(dtype), eps.to(dtype), noise
                times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
                for _ in range(runs):
                    for name, make in CONTESTANTS.items():
                        times[name].append(run_time(make(solver, inputs)))
                names = list(times)
                cells = [f"{statistics.median(times[names[0]]):.1f}"]
                cells += [compared(times[name], times[names[0]]) for name in names[1:]]
                kind = str(dtype).removeprefix("torch.")
                rows.append([solver, kind, "x".join(map(str, shape)), *cells])
    return markdown_table(["solver", "dtype", "shape", *CONTESTANTS], rows)


def run_time(steps: Iterator[Callable[[], Any]]) -> float:
    """Microseconds of a step: the median over a run's middle."""
    times = []
    for step in steps:
        begin = time.perf_counter()
        step()
        times.append(1e6 * (time.perf_counter() - begin))
    return statistics.median(times[4:17])


def compared(times: list[float], first: list[float]) -> str:
    """The median, and the quartiles of the ratio to what ran beside it."""
    ratios = [time / own for time, own in zip(times, first, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(times):.1f} ({low:.2f}, {middle:.2f}, {high:.2f})"


def latents() -> str:
    rows = []
    for solver in (*SOLVERS, "dpmpp-3m", "unipc", "deis", "ghvb"):
        row, table = [solver], table_of(solver)
        for dtype in DTYPES[:2]:
            x, noise = torch.zeros(4096, dtype=dtype), torch.zeros(4096)
            run = Runner(table)
            for index in range(STEPS // 2 + 1):
                with Traffic() as traffic:
                    run.step(index, x, x, noise if table.steps[index].next.noise else None)
            row += [str(traffic.operations), f"{traffic.bytes / (x.numel() * x.element_size()):.0f}"]
        rows.append(row)
    names = [f"{dtype}, {what}" for dtype in ("float32", "bfloat16") for what in ("operations", "latents")]
    return markdown_table(["solver", *names], rows)


class Traffic(TorchDispatchMode):
    """Counts operations and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not str(func).startswith("aten.empty"):
            tensors = [value for value in (*args, result) if isinstance(value, Tensor) and value.numel() > 1]
            self.operations += bool(tensors)
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def set_up(repeats: int) -> str:
    rows = []
    for steps in (20, 1000):
        peers: dict[str, list[Callable[[int], float]]] = {}
        for name in SCHEDULERS:
            peers[name] = [first_call(getattr(fs, name), steps), repeated_call(getattr(fs, name), steps)]
        theirs = diffusers.DPMSolverMultistepScheduler
        peers["diffusers 2M"] = [first_call(theirs, steps), repeated_call(theirs, steps)]
        times: dict[tuple[str, int], list[float]] = {}
        for index in range(repeats if steps < 100 else max(3, repeats // 10)):
            for name, calls in peers.items():
                for kind, call in enumerate(calls):
                    times.setdefault((name, kind), []).append(call(index))
        for name in peers:
            own = [times[name, kind] for kind in range(2)]
            beside = [times["diffusers 2M", kind] for kind in range(2)]
            rows.append([name, str(steps), *(milliseconds(*pair) for pair in zip(own, beside, strict=True))])
    return markdown_table(["class", "steps", "first, ms (ratio to diffusers)", "repeated, ms (ratio)"], rows)


def first_call(kind: Any, steps: int) -> Callable[[int], float]:
    """Of a scheduler whose config is new to the process."""

    def call(index: int) -> float:
        made = kind.from_config({"beta_schedule": "scaled_linear", "beta_end": 0.012 + 1e-6 * index + 1e-9 * steps})
        return timed(lambda: made.set_timesteps(steps))

    return call


def repeated_call(kind: Any, steps: int) -> Callable[[int], float]:
    made = kind.from_config({"beta_schedule": "scaled_linear"})
    made.set_timesteps(steps)
    return lambda index: timed(lambda: made.set_timesteps(steps))


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - begin)


def milliseconds(times: list[float], beside: list[float]) -> str:
    ratios = [time / other for time, other in zip(times, beside, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{statistics.median(times):.3f} ({low:.2f}, {middle:.2f}, {high:.2f})"


PARTS: dict[str, Callable[[int], str]] = {
    "steps": step_times,
    "latents": lambda repeats: latents(),
    "set-up": set_up,
}


def main(
    repeats: Annotated[int, typer.Option(help="Runs of each contestant; fewer for large samples.")] = 40,
    only: Annotated[str, typer.Option(help="One of steps, latents, set-up; all by default.")] = "",
) -> None:
    """Measure, and print Markdown."""
    if only and only not in PARTS:
        raise typer.BadParameter(f"only = {only!r}: choose one of {', '.join(PARTS)}")
    gc.disable()
    with torch.no_grad():
        for name, part in PARTS.items():
            if name == only or not only:
                typer.echo(f"## {name}, {torch.get_num_threads()} thread(s), torch {torch.__version__}\n")
                typer.echo(part(repeats) + "\n")


if __name__ == "__main__":
    typer.run(main)
