"""The image by sweep: how far each parallel iteration is from the sequential result, and what that looks like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from fastsample.bench import grids, plots
from fastsample.bench.cases import Arm
from fastsample.bench.metrics import rms
from fastsample.bench.runner import Bench
from fastsample.wording import counted


def trace(runner: Bench, arms: Sequence[Arm], steps: int, guidance: float) -> dict[str, Callable[[Path], None]]:
    """Files by name, and what writes them: the error by sweep with all steps at once, and the first prompt's image.

    A line or row is a solver with an iteration, at the least of the arms' tolerances.
    """
    errors: dict[str, list[float]] = {}
    strips: dict[str, Tensor] = {}
    for arm in tightest(arms):
        assert arm.parallel is not None
        guesses, exact, strip = runner.trace(arm, steps, guidance, seed=0)
        label = f"{arm.plain.title}, {arm.parallel.iteration} sweeps"
        errors[label] = [rms(guess, exact) / float(exact.std()) for guess in guesses]
        strips[label] = strip
    title = f"{counted(steps, 'step')} at once, guidance {guidance:g}, seed 0"
    return {
        "sweeps.png": lambda path: plots.sweeps(errors, path, title),
        "strip.png": lambda path: grids.strips(strips, path, title),
    }


def tightest(arms: Sequence[Arm]) -> list[Arm]:
    """Of the arms that differ in window and tolerance alone, one of the least tolerance."""

    def tolerance(arm: Arm) -> float:
        assert arm.parallel is not None
        return arm.parallel.tolerance

    ordered = sorted(arms, key=tolerance, reverse=True)  # the last one of a key is kept
    return list({(arm.plain, arm.parallel and arm.parallel.iteration): arm for arm in ordered}.values())
