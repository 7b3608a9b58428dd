"""One linear update, with named slots, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastsample.schedules.base import Node
from fastsample.tables.prediction import Space

TOLERANCE = 1e-9


@dataclass(frozen=True)
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
        values = (self.sample, self.data, self.noise, *self.history, *self.states.values())
        return all(math.isfinite(value) for value in values)

    def total(self) -> float:
        """The sum of the history weights."""
        return math.fsum(self.history)


@dataclass(frozen=True)
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
        where = f"row {self.source.time:g} -> {self.target.time:g}"
        for weights in (self.next, self.entry or Weights(), *self.states.values()):
            if not weights.finite():
                raise ValueError(
                    f"{where}: weights {weights} are not finite; this update does not exist there (sigma = 0 or "
                    "zero SNR need an order-1 data-prediction step)"
                )
        base = self.base or self.source
        # The history sums to the constant prediction; a velocity is a mean of such predictions.
        prediction = self.next.total() + self.next.states.get("velocity", 0.0)
        on_data, on_noise = (prediction, 0.0) if self.space == "data" else (0.0, prediction)
        on_data += self.next.data
        saved = self.next.states.get("base", 0.0)
        alpha = self.next.sample * self.source.alpha + saved * base.alpha + on_data
        sigma = self.next.sample * self.source.sigma + saved * base.sigma + on_noise
        scale = 1.0 + sum(map(abs, self.next.history))
        if abs(alpha - self.target.alpha) > TOLERANCE * scale:
            raise ValueError(
                f"{where}: marginal check failed, constant data is scaled by {alpha:.9g} instead of "
                f"alpha = {self.target.alpha:.9g}; the weights {self.next} have a wrong sign or factor"
            )
        if not self.exact_variance:
            return
        # Without noise compare sigma itself, which sees a sign.
        got, want = (sigma, self.target.sigma)
        if self.next.noise:
            got, want = sigma**2 + self.next.noise**2, self.target.sigma**2
        if abs(got - want) > TOLERANCE * scale:
            raise ValueError(
                f"{where}: marginal check failed, the noise becomes {got:.9g} instead of {want:.9g}; "
                f"the weights {self.next} have a wrong sign or factor"
            )


def ddim_weights(source: Node, target: Node) -> Weights:
    """The first-order update (DDIM, arXiv:2010.02502, eq. 12), finite at sigma = 0 and at zero SNR alike."""
    ratio = target.sigma / source.sigma
    return Weights(sample=ratio, data=target.alpha - source.alpha * ratio)
