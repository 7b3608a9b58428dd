"""The ancestral split of a step: a deterministic part that goes too far, and the noise that makes up for it."""

from __future__ import annotations

import math

from fastsample.schedules.base import Node
from fastsample.solvers.registry import check_eta


def ancestral_split(source: Node, target: Node, eta: float) -> tuple[Node, float]:
    """The node to step to without noise, and the noise's standard deviation that then restores `target`.

    eta = 0 is deterministic, eta = 1 ancestral sampling (DDPM; DDIM, arXiv:2010.02502, eq. 16; EDM,
    arXiv:2206.00364). Raises ValueError outside [0, 1].
    """
    check_eta(eta)
    if eta == 0:
        return target, 0.0
    noise = eta * target.sigma * math.sqrt(1 - (target.sbar / source.sbar) ** 2)
    return Node(target.time, target.alpha, math.sqrt(target.sigma**2 - noise**2)), noise
