"""Accelerated samplers with provable rates (Li, Huang, Efimov, Wei, Chi, Chen 2024, arXiv:2403.03852)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastsample.schedules.base import Node
from fastsample.solvers.adams import sigma_row
from fastsample.solvers.registry import solver
from fastsample.tables.row import Row, Weights, ddim_weights

REFERENCES = ("arXiv:2403.03852",)


def signal_power(node: Node) -> float:
    """abar = alpha^2 of a VP marginal; of any other, that of the VP marginal with the same log-SNR."""
    return node.alpha**2 / (node.alpha**2 + node.sigma**2)


@solver("accelerated", order=2, space="noise", references=REFERENCES, limits=False)
def accelerated(nodes: Sequence[Node], target: Node, *, order: int = 2) -> Row:
    """Accelerated ODE sampler: the noise prediction extrapolated linearly in abar = alpha^2, integrated exactly."""
    source = nodes[-1]
    if order == 1 or not nodes[-2].has_signal:
        return sigma_row(source, target, (1.0,))
    now, before = signal_power(source), signal_power(nodes[-2])

    def primitive(node: Node) -> float:
        return now * node.sbar + math.atan2(node.alpha, node.sigma)  # arcsin sqrt(abar), without cancellation

    extrapolated = (primitive(target) - primitive(source)) / (now - before)
    slope = extrapolated / (target.sbar - source.sbar)
    return sigma_row(source, target, (1.0 - slope, slope))


@solver(
    "accelerated-sde",
    order=1,
    space="noise",
    references=REFERENCES,
    limits=False,
    flow=False,
    summary="Accelerated SDE sampler: stochastic, VP models only, one model call a step",
)
def accelerated_sde(nodes: Sequence[Node], target: Node, *, order: int = 1, following: Node | None = None) -> Row:
    """The model is called on samples made noisier by half a step's noise; the other half follows the step.

    Both draws meet in the next call's input, so they are one of their summed variance here; the one before the
    first call, on a sample that is all noise, is left out. No noise on the last step.
    """
    source = nodes[-1]
    after = _half_variance(source, target)
    before = _half_variance(target, following) if following else 0.0
    noise = math.sqrt(after + before) if following else 0.0
    if not source.has_signal:
        return Row(
            source,
            target,
            Weights(data=target.alpha, noise=math.hypot(target.sigma, math.sqrt(before))),
            "noise",
            exact_variance=False,
        )
    if target.sigma == 0:
        return Row(source, target, ddim_weights(source, target), "noise")
    ratio = target.alpha / source.alpha
    removed = (1 - 1 / ratio**2) / source.sigma
    return Row(
        source, target, Weights(ratio, history=(-ratio * removed,), noise=noise), "noise", exact_variance=False
    )


def _half_variance(source: Node, target: Node) -> float:
    """(1 - a) / 2 with a = abar_s / abar_t: half the variance that the forward process adds in this step."""
    return (1 - (source.alpha / target.alpha) ** 2) / 2
