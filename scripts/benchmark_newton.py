"""What bounds the sweeps of parallel sampling: Newton's iteration with the exact Jacobian, and guesses by few steps.

    python scripts/benchmark_newton.py --out benchmarks/parallel_mixture

DDIM on analytic mixtures, all steps at once. A sweep of every method is z[n+1] = F[n](y[n]) + J[n] (z[n] - y[n]), y
being the last sweep. J = 1 is Picard (arXiv:2305.16317), a scalar from the last two sweeps the secant, the Jacobian
of the step Newton's method (DEER, arXiv:2309.12252), which no network gives away for the price of an evaluation. A
cell has the rounds, mean over images, until the final sample's error to the sequential one stays below a share of
the spread. A guess by few steps of DDIM costs a round a step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from benchmark_parallel import MIXTURES, MODELS
from torch import Tensor

from fastsample import GaussianMixture, build_table, time_grid
from fastsample.bench.report import markdown_table

NAMES = tuple(MIXTURES)[:3]
"""Without that of 64 dimensions, where every method has settled after three sweeps."""
COUNTS, SHARES, COARSE = (25, 50), (1e-1, 1e-2, 1e-3), (3, 5)
IMAGES, SWEEPS = 16, 16
Row = Callable[..., Tensor]
"""One step of one image: from the sample [d], the node's alpha and sigma, and the step's two coefficients."""


def row_of(mixture: GaussianMixture) -> Row:
    """A step on noise predictions."""

    def row(x: Tensor, numbers: Tensor) -> Tensor:
        alpha, sigma, own, weight = numbers
        data = mixture.data_prediction(x[None], alpha, sigma)[0]  # type: ignore[arg-type]
        return own * x + weight * (x - alpha * data) / sigma

    return row


def numbers_of(count: int) -> Tensor:
    """[count, 4]: of each step of DDIM."""
    schedule, prediction = MODELS["VP"]
    steps = build_table("ddim", schedule, time_grid("trailing", schedule, count), prediction_type=prediction).steps
    found = [(one.node.alpha, one.node.sigma, one.next.sample, one.next.output) for one in steps]
    return torch.tensor(found, dtype=torch.float64)


def sequential(row: Row, numbers: Tensor, x: Tensor) -> Tensor:
    """[N + 1, B, d]: the sample after each step."""
    states = [x]
    for own in numbers:
        states.append(torch.func.vmap(row, (0, None))(states[-1], own))
    return torch.stack(states)


def scalars(states: Tensor, values: Tensor, last: tuple[Tensor, Tensor] | None) -> Tensor:
    """[N, B, 1, 1]: the secant's slopes; 1 before there are two sweeps."""
    if last is None:
        return torch.ones(*states.shape[:2], 1, 1, dtype=states.dtype)
    moved, changed = states - last[0], values - last[1]
    ratio = (moved * changed).sum(-1) / (moved * moved).sum(-1).clamp_min(1e-300)
    return ratio.clamp(0, 1.5)[..., None, None]


def ends(method: str, row: Row, numbers: Tensor, guess: Tensor) -> Tensor:
    """[sweeps, B, d]: the final sample after each sweep from a guess [N + 1, B, d], which begins at the start."""
    every = lambda one: torch.func.vmap(torch.func.vmap(one, (0, None)))  # noqa: E731
    identity = torch.eye(guess.shape[-1], dtype=guess.dtype)
    states, last, found = guess, None, []
    for _ in range(SWEEPS):
        y = states[:-1]
        values = every(row)(y, numbers)
        if method == "Newton":
            slopes = every(torch.func.jacfwd(row))(y, numbers)
        else:
            slopes = scalars(y, values, last if method == "secant" else None) * identity
        fresh = [guess[0]]
        for index in range(len(numbers)):
            fresh.append(values[index] + torch.einsum("bij,bj->bi", slopes[index], fresh[-1] - y[index]))
        states, last = torch.stack(fresh), (y, values)
        found.append(states[-1])
    return torch.stack(found)


def rounds(found: Tensor, exact: Tensor, share: float) -> float:
    """Mean over images of the first sweep from which on the error is at most `share` of the spread."""
    above = (found - exact).square().mean(-1).sqrt() > share * exact.std()
    behind = above.int().flip(0).cummax(0).values
    return float(behind.sum(0).double().mean()) + 1


def interpolated(coarse: Tensor, count: int) -> Tensor:
    """A coarse trajectory at `count` + 1 states, linear between its own."""
    places = np.linspace(0, len(coarse) - 1, count + 1)
    below = np.minimum(places.astype(int), len(coarse) - 2)
    part = torch.from_numpy(places - below)[:, None, None]
    return (1 - part) * coarse[below] + part * coarse[below + 1]


def measured(name: str, count: int) -> dict[str, list[float]]:
    """Rounds by method and share on one mixture."""
    mixture = GaussianMixture.random(**MIXTURES[name])  # type: ignore[arg-type]
    row, numbers = row_of(mixture), numbers_of(count)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, mixture.means.shape[1], generator=generator, dtype=torch.float64)
    exact = sequential(row, numbers, x)[-1]
    still = x.expand(count + 1, -1, -1)
    found = {method: (ends(method, row, numbers, still), 0) for method in ("Picard", "secant", "Newton")}
    for coarse in COARSE:
        guess = interpolated(sequential(row, numbers_of(coarse), x), count)
        found[f"secant, guess by {coarse} steps"] = (ends("secant", row, numbers, guess), coarse)
    return {name: [cost + rounds(end, exact, share) for share in SHARES] for name, (end, cost) in found.items()}


def main(out: Annotated[Path, typer.Option(help="Folder for newton.md.")]) -> None:
    """Print and write the table."""
    lines = [
        [name, str(count), method, *(f"{value:.1f}" for value in values)]
        for name in NAMES
        for count in COUNTS
        for method, values in measured(name, count).items()
    ]
    text = markdown_table(["mixture", "steps", "method", *(f"to {share:g}" for share in SHARES)], lines)
    out.mkdir(parents=True, exist_ok=True)
    (out / "newton.md").write_text(text)
    print(text)


if __name__ == "__main__":
    typer.run(main)
