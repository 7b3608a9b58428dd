"""A whole sampling loop as replays of one CUDA graph, against the same loop launched step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import fastsample as fs
from fastsample.demo import bundled
from gpu_parts import Part, Record, Setting
from gpu_parts.cases import random
from gpu_parts.steps import STEPS, table_of
from gpu_parts.timing import DEVICE, seconds, spread


class Convolutions(nn.Module):
    """A small denoiser of many launches: what a graph saves shows on it."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, width, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(layers))

    def forward(self, x: Tensor, t: Tensor | float) -> Tensor:
        h = self.first(x) + t
        for layer in self.layers:
            h = h + layer(nn.functional.silu(h))
        return self.last(h)


def graphs(setting: Setting) -> Iterator[Record]:
    """Milliseconds of a run of 20 steps, and how far the two are apart."""
    width, layers, side = (8, 2, 8) if setting.smoke else (64, 20, 64)
    network = Convolutions(width, layers).to(DEVICE).eval()
    for solver in ("ddim", "dpmpp-2m", "unipc"):
        table, x = table_of(solver), random(1, 4, side, side)
        loop = fs.GraphedLoop(table, network, x)
        want, got = fs.integrate(table, network, x), loop.run(x)
        error = float((got - want).norm() / want.norm())
        assert error < 1e-2, f"{solver}: the graph is {error:.1e} from the loop"  # TF32 in its convolutions
        eager = spread([1e3 * s for s in seconds(lambda: fs.integrate(table, network, x), setting.repeats)], "ms")  # noqa: B023
        graphed = spread([1e3 * s for s in seconds(lambda: loop.run(x), setting.repeats)], "graph_ms")  # noqa: B023
        record = {"solver": solver, "steps": STEPS, **eager, **graphed, "apart": f"{error:.1e}"}
        yield record | {"ratio": round(eager["ms"] / graphed["graph_ms"], 2)}
    yield from _pipelines(setting)


def _pipelines(setting: Setting) -> Iterator[Record]:
    """The bundled text-to-image pipeline, step by step and in parallel rounds, inside `fastsample.graphs` and not."""
    pipe = bundled.load_pipeline(device=DEVICE)
    pipe.scheduler = fs.DPMSolverScheduler.from_config(pipe.scheduler.config)
    steps, repeats = (4, 1) if setting.smoke else (STEPS, 5)

    def run(call: Callable[..., Any]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "latent"}
        return call("a small red circle", generator=generator, **options).images

    parallel = {"iteration": "secant", "window": 8, "tolerance": 0.1}
    makers = {"pipeline": lambda: pipe, "ParallelSampler": lambda: fs.ParallelSampler(pipe, **parallel)}
    for name, make in makers.items():
        call = make()
        want = run(call)
        eager = spread([1e3 * s for s in seconds(lambda: run(call), repeats)], "ms")  # noqa: B023
        with fs.graphs(pipe) as counts:
            call = make()
            error = float((run(call) - want).norm() / want.norm())
            graphed = spread([1e3 * s for s in seconds(lambda: run(call), repeats)], "graph_ms")  # noqa: B023
        assert error < 0.05, f"{name}: graphs are {error:.1e} from the loop"
        record = {"solver": f"bundled, {name}", "steps": steps, **eager, **graphed, "apart": f"{error:.1e}"}
        yield record | {"ratio": round(eager["ms"] / graphed["graph_ms"], 2), "captured": counts.captured}


PART = Part(
    "graph",
    "What does a CUDA graph save on a small denoiser?",
    20,
    graphs,
    ("solver", "steps", "ms", "graph_ms", "ratio", "apart", "captured"),
)
