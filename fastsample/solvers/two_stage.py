"""Two model calls a step at a stage of its own: Heun, DPM2, DPM++ 2S ancestral, DPM++ SDE (k-diffusion's family).

A scheduler's step count counts whole steps here, so twice as many model calls but for the last. `order` is 1 at
a step's start and 2 at its stage; the state "base" keeps the sample at the start.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastsample.schedules.base import Node
from fastsample.solvers.ancestral import ancestral_split
from fastsample.solvers.exponential import ExponentialStep
from fastsample.solvers.registry import log_step, solver
from fastsample.tables.row import Row, Weights, ddim_weights

KEEP = {"base": Weights(sample=1.0)}
MIDPOINT: dict[str, Any] = {"stages": (0.5,), "whole_steps": True}
EDM = "arXiv:2206.00364"


def to_stage(source: Node, target: Node, eta: float = 0.0) -> Row:
    """The first-order step from the start of a step to its stage, or to its end where it has no stage."""
    down, noise = ancestral_split(source, target, eta)
    return Row(source, target, ddim_weights(source, down, noise), states=KEEP)


@solver("heun", order=2, space="data", references=(EDM,), stages=(1.0,), whole_steps=True)
def heun(nodes: Sequence[Node], target: Node, *, order: int = 2, published: bool = False) -> Row:
    """Heun's method (EDM, arXiv:2206.00364, alg. 1): in sigma / alpha, on flow models in sigma; two calls a step.

    In sigma / alpha what the data predictions at the two ends differ by is magnified by up to half the ratio of their
    noise levels. So a step down to less than e^-1.4 of a level that still exceeds the signal is made in
    sigma / (alpha + sigma), as on flow models, where nothing is; not on models that start below a level of 32, as the
    VP models of diffusers, whose HeunDiscreteScheduler this is at any length, nor where it is to be as `published`.
    """
    source = nodes[-1]
    if order == 1:
        return to_stage(source, target)
    base = nodes[-2]
    long = not published and nodes[0].sbar > 32 and base.sbar > 1 and log_step(base, target) > 1.4
    if base.has_signal and not long and abs(base.alpha + base.sigma - 1) > 1e-9:
        # d(x / alpha) / d(sigma / alpha) = noise
        scales, on_data, width = (base.alpha, target.alpha), 0.0, target.sbar - base.sbar
    else:  # d(x / (alpha + sigma)) / d(sigma / (alpha + sigma)) = noise - data, regular at zero SNR
        scales, on_data = (base.alpha + base.sigma, target.alpha + target.sigma), 1.0
        width = target.sigma / scales[1] - base.sigma / scales[0]
    half = scales[1] * width / 2
    # noise = (x - alpha data) / sigma at either end
    weights = Weights(
        sample=half / source.sigma,
        history=(-half * (source.alpha / source.sigma + on_data), -half * (base.alpha / base.sigma + on_data)),
        states={"base": scales[1] / scales[0] + half / base.sigma},
    )
    return Row(source, target, weights, base=base)


def from_base(nodes: Sequence[Node], target: Node, eta: float, weights: Any) -> Row:
    """The whole step from the kept base, given by `weights(base, down, noise)`, with its ancestral noise."""
    source, base = nodes[-1], nodes[-2]
    down, noise = ancestral_split(base, target, eta)
    return Row(source, target, weights(base, down, noise), base=base)


@solver("dpm2", order=2, space="data", references=(EDM,), longest=(math.inf, 3.0), **MIDPOINT)
def dpm2(nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 0.0) -> Row:
    """DPM2: the midpoint method in log(sigma / alpha), two calls a step; `eta` 1 is "DPM2 a"."""
    source = nodes[-1]
    if order == 1:
        return to_stage(source, target)

    def midpoint(base: Node, down: Node, noise: float) -> Weights:
        if not base.has_signal:
            return _with_stage_data(base, down, noise)
        factor = (down.sigma - down.alpha * base.sbar) / source.sigma  # times the noise at the stage
        states = {"base": down.alpha / base.alpha}
        return Weights(factor, history=(-factor * source.alpha,), states=states, noise=noise)

    return from_base(nodes, target, eta, midpoint)


@solver("dpmpp-2s-ancestral", order=2, space="data", references=("arXiv:2211.01095",), **MIDPOINT)
def dpmpp_2s_ancestral(nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 1.0) -> Row:
    """DPM-Solver++ 2S with ancestral noise ("DPM++ 2S a"), two calls a step; `eta` 0 is deterministic."""
    source = nodes[-1]
    if order == 1:
        return to_stage(source, target)

    def second_order(base: Node, down: Node, noise: float) -> Weights:
        if not base.has_signal:
            return _with_stage_data(base, down, noise)
        step = ExponentialStep(base, down, "data")
        k = step.constant * step.h / (2 * log_step(base, source))
        return Weights(history=(k, step.constant - k), states={"base": step.sample}, noise=noise)

    return from_base(nodes, target, eta, second_order)


@solver("dpmpp-sde", order=1, space="data", references=("arXiv:2211.01095",), **MIDPOINT)
def dpmpp_sde(nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 1.0) -> Row:
    """DPM++ SDE: an ancestral step to the midpoint, then the whole one with its data prediction; two calls a step."""
    if order == 1:
        return to_stage(nodes[-1], target, eta)
    return from_base(nodes, target, eta, _with_stage_data)


def _with_stage_data(base: Node, target: Node, noise: float) -> Weights:
    """DDIM from the base with the data prediction made at the stage."""
    direct = ddim_weights(base, target)
    return Weights(data=direct.data, states={"base": direct.sample}, noise=noise)
