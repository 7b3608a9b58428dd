"""Model calls at stages of a step's own: Heun, Heun++, DPM2, DPM++ 2S ancestral, DPM++ SDE (k-diffusion's family).

A scheduler's step count counts whole steps here, so twice as many model calls but for the last. `order` is 1 at
a step's start and 2 at its stage; the state "base" keeps the sample at the start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    line = Line(straight=not base.has_signal or long or is_flow(base))
    return Row(source, target, line.weights([source, base], target, [0.5, 0.5]), base=base)


def is_flow(node: Node) -> bool:
    """Whether the marginal is one of flow matching, alpha + sigma = 1."""
    return abs(node.alpha + node.sigma - 1) <= 1e-9


@dataclass(frozen=True)
class Line:
    """What Euler's method steps in: x / alpha over sigma / alpha, whose slope is the noise, or if `straight`
    x / (alpha + sigma) over sigma / (alpha + sigma), whose slope is noise - data, regular at zero SNR."""

    straight: bool

    def scale(self, node: Node) -> float:
        """What the sample is divided by."""
        return node.alpha + node.sigma if self.straight else node.alpha

    def place(self, node: Node) -> float:
        """Where `node` lies."""
        return node.sigma / self.scale(node)

    def weights(self, nodes: Sequence[Node], target: Node, slopes: Sequence[float], noise: float = 0.0) -> Weights:
        """From a base to `target` along `slopes` (weights that sum to 1) of those at `nodes`, newest first.

        The last of `nodes` is the base, the first holds the sample; one between them was stepped to from the base.
        """
        base, scale = nodes[-1], self.scale(target)
        width = scale * (self.place(target) - self.place(base))
        on_base, history = scale / self.scale(base), [0.0] * len(nodes)
        sample = width * slopes[0] / nodes[0].sigma
        for index, (node, slope) in enumerate(zip(nodes, slopes, strict=True)):
            # noise = (x - alpha data) / sigma
            on_noise = width * slope / node.sigma
            history[index] -= on_noise * node.alpha + width * slope * self.straight
            if index == len(nodes) - 1:
                on_base += on_noise
            elif index:
                stepped = ddim_weights(base, node)
                on_base += on_noise * stepped.sample
                history[-1] += on_noise * stepped.data
        while not history[-1]:
            history.pop()
        return Weights(sample, history=tuple(history), states={"base": on_base}, noise=noise)


def from_base(nodes: Sequence[Node], target: Node, eta: float, split: str, weights: Any) -> Row:
    """The whole step from the kept base, given by `weights(base, down, noise)`, with its ancestral noise."""
    source, base = nodes[-1], nodes[-2]
    down, noise = ancestral_split(base, target, eta, split)
    return Row(source, target, weights(base, down, noise), base=base)


def on_the_way_down(source: Node, target: Node, part: float, options: Mapping[str, Any]) -> float:
    """lam of a stage at `part` of the deterministic part of an ancestral step, as in k-diffusion."""
    down, _ = ancestral_split(source, target, options["eta"], options["split"])
    return source.lam + part * log_step(source, down)


def dpm2_stage(source: Node, target: Node, part: float, options: Mapping[str, Any]) -> float:
    """The same, at the geometric mean of what it steps in."""
    if options["split"] == "posterior":
        return on_the_way_down(source, target, part, options)
    down, _ = ancestral_split(source, target, options["eta"], options["split"])
    level = source.fraction ** (1 - part) * down.fraction**part
    return math.log((1 - level) / level)


@solver("dpm2", order=2, space="data", references=(EDM,), longest=(math.inf, 3.0), place=dpm2_stage, **MIDPOINT)
def dpm2(nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 0.0, split: str = "posterior") -> Row:
    """DPM2: the midpoint method in log(sigma / alpha), two calls a step; `eta` 1 is "DPM2 a".

    With `split` "rf", that of rectified flows, in sigma / (alpha + sigma).
    """
    source = nodes[-1]
    if order == 1:
        return to_stage(source, target)

    def midpoint(base: Node, down: Node, noise: float) -> Weights:
        if not base.has_signal:
            return _with_stage_data(base, down, noise)
        return Line(straight=split == "rf").weights([source, base], down, [1.0, 0.0], noise)

    return from_base(nodes, target, eta, split, midpoint)


@solver("heunpp", order=1, space="data", references=(EDM,), stages=(1.0, 2.0), whole_steps=True)
def heunpp(nodes: Sequence[Node], target: Node, *, order: int = 3, block: int = 3) -> Row:
    """Heun++: Euler with a mean of the slopes here and at the ends of this step and the next, three calls a step.

    Weights s_1 / (3 s_0) and s_2 / (3 s_0) of the later slopes, s_0 the first level of all; one slope fewer in the
    last but one step. In sigma / alpha, on flow models and from zero SNR in sigma / (alpha + sigma).
    """
    source = nodes[-1]
    if order < block:
        row = to_stage(source, target)
        return row if order == 1 else Row(source, target, row.next)
    if block == 1:
        return to_stage(source, target)
    evaluated = nodes[: -block - 1 : -1]
    line = Line(straight=not nodes[0].has_signal or is_flow(source))
    shares = [line.place(node) / (block * line.place(nodes[0])) for node in evaluated[:-1]]
    weights = line.weights(evaluated, target, [*shares, 1 - sum(shares)])
    return Row(source, target, weights, base=evaluated[-1])


@solver(
    "dpmpp-2s-ancestral",
    order=2,
    space="data",
    references=("arXiv:2211.01095",),
    place=on_the_way_down,
    **MIDPOINT,
)
def dpmpp_2s_ancestral(
    nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 1.0, split: str = "posterior"
) -> Row:
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

    return from_base(nodes, target, eta, split, second_order)


@solver("dpmpp-sde", order=1, space="data", references=("arXiv:2211.01095",), **MIDPOINT)
def dpmpp_sde(nodes: Sequence[Node], target: Node, *, order: int = 2, eta: float = 1.0) -> Row:
    """DPM++ SDE: an ancestral step to the midpoint, then the whole one with its data prediction; two calls a step."""
    if order == 1:
        return to_stage(nodes[-1], target, eta)
    return from_base(nodes, target, eta, "posterior", _with_stage_data)


def _with_stage_data(base: Node, target: Node, noise: float) -> Weights:
    """DDIM from the base with the data prediction made at the stage."""
    direct = ddim_weights(base, target)
    return Weights(data=direct.data, states={"base": direct.sample}, noise=noise)
