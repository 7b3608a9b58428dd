"""One linear update, with named slots, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsample.schedules.base import Node
from fastsample.tables.prediction import Space

TOLERANCE = 1e-9


@dataclass(slots=True)  # not frozen, which takes five times as long to make; never changed once made
class Weights:
    """A linear combination of what a step can read.

    `history[0]` is the prediction just made (data or noise, as the row's space says), `history[1]` the entry
    before it, and so on. `data` weighs the data prediction just made, whatever the space. `states` are named
    tensors carried from step to step ("velocity", "base").
    """

    sample: float = 0.0
    data: float = 0.0
    history: tuple[float, ...] = ()
    states: Mapping[str, float] = field(default_factory=dict)
    noise: float = 0.0

    def finite(self) -> bool:
        """Whether every weight is, as their sum is only then."""
        return math.isfinite(self.sample + self.data + self.noise + sum(self.history) + sum(self.states.values()))

    def total(self) -> float:
        """The sum of the history weights."""
        return math.fsum(self.history)


@dataclass(slots=True)  # as Weights
class Row:
    """The update after one model evaluation: from the sample at `source` to the next one at `target`.

    `entry` is what enters the history (default: the prediction itself); `states` the new values of named
    states (those not named keep theirs). The **marginal check** runs on construction: with constant data d
    and constant noise n, `alpha_s d + sigma_s n` must go to `alpha_t d + S n` with `S^2 + noise^2 =
    sigma_t^2`, so a wrong sign dies here. `exact_variance=False` is for samplers that keep the mean of the
    marginal but its variance only to first order (SDE-DPM-Solver in noise form).
    Raises ValueError when a weight is not finite or the check fails.
    """

    source: Node
    target: Node
    next: Weights
    space: Space = "data"
    entry: Weights | None = None
    states: Mapping[str, Weights] = field(default_factory=dict)
    exact_variance: bool = True
    base: Node | None = None  # where the state "base" was saved (default: source)

    def __post_init__(self) -> None:
        for weights in (self.next, self.entry, *self.states.values()):
            if weights is not None and not weights.finite():
                raise ValueError(
                    f"{self._place()}: weights {weights} are not finite; this update does not exist there (sigma = 0 "
                    "or zero SNR need an order-1 data-prediction step)"
                )
        source, target, base, weights = self.source, self.target, self.base or self.source, self.next
        prediction, saved = weights.total(), 0.0
        if weights.states:  # a velocity is a mean of predictions, so it too is the constant one
            prediction, saved = prediction + weights.states.get("velocity", 0.0), weights.states.get("base", 0.0)
        on_data, on_noise = (prediction, 0.0) if self.space == "data" else (0.0, prediction)
        alpha = weights.sample * source.alpha + saved * base.alpha + on_data + weights.data
        sigma = weights.sample * source.sigma + saved * base.sigma + on_noise
        allowed = TOLERANCE * (1.0 + sum(map(abs, weights.history)))
        if abs(alpha - target.alpha) > allowed:
            raise ValueError(
                f"{self._place()}: marginal check failed, constant data is scaled by {alpha:.9g} instead of "
                f"alpha = {target.alpha:.9g}; the weights {weights} have a wrong sign or factor"
            )
        if not self.exact_variance:
            return
        # Without noise compare sigma itself, which sees a sign.
        got, want = sigma, target.sigma
        if weights.noise:
            got, want = sigma**2 + weights.noise**2, target.sigma**2
        if abs(got - want) > allowed:
            raise ValueError(
                f"{self._place()}: marginal check failed, the noise becomes {got:.9g} instead of {want:.9g}; "
                f"the weights {weights} have a wrong sign or factor"
            )

    def _place(self) -> str:
        return f"row {self.source.time:g} -> {self.target.time:g}"


def ddim_weights(source: Node, target: Node, noise: float = 0.0) -> Weights:
    """The first-order update (DDIM, arXiv:2010.02502, eq. 12), finite at sigma = 0 and at zero SNR alike.

    `noise` is the standard deviation of what is added.
    """
    ratio = target.sigma / source.sigma
    return Weights(ratio, target.alpha - source.alpha * ratio, noise=noise)


def first_order_weights(source: Node, target: Node) -> Weights:
    """:func:`ddim_weights` of a rule on noise predictions: from clean data too, where a rising grid begins."""
    if source.sigma:
        return ddim_weights(source, target)
    return Weights(target.alpha / source.alpha, history=(target.sigma,))
