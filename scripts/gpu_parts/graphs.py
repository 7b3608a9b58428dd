"""A whole sampling loop as replays of one CUDA graph, against the same loop launched step by step."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

import fastsample as fs
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
        assert error < 1e-3, f"{solver}: the graph is {error:.1e} from the loop"
        eager = spread([1e3 * s for s in seconds(lambda: fs.integrate(table, network, x), setting.repeats)], "ms")  # noqa: B023
        graphed = spread([1e3 * s for s in seconds(lambda: loop.run(x), setting.repeats)], "graph_ms")  # noqa: B023
        record = {"solver": solver, "steps": STEPS, **eager, **graphed, "apart": f"{error:.1e}"}
        yield record | {"ratio": round(eager["ms"] / graphed["graph_ms"], 2)}


PART = Part(
    "graph",
    "What does a CUDA graph save on a small denoiser?",
    20,
    graphs,
    ("solver", "steps", "ms", "graph_ms", "ratio", "apart"),
)
