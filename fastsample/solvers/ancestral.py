"""The ancestral split of a step: a deterministic part that goes too far, and the noise that makes up for it."""

from __future__ import annotations

import math

from fastsample.schedules.base import Node
from fastsample.solvers.registry import check_choice, check_eta

SPLITS = ("posterior", "rf")


def ancestral_split(source: Node, target: Node, eta: float, split: str = "posterior") -> tuple[Node, float]:
    """The node to step to without noise, and the noise's standard deviation that then restores `target`.

    eta = 0 is deterministic, eta = 1 ancestral sampling. The "posterior" split is that of DDPM (DDIM,
    arXiv:2010.02502, eq. 16; EDM, arXiv:2206.00364). In the "rf" split of rectified flows the step goes on to the
    level u_t (1 + (u_t / u_s - 1) eta), u = sigma / (alpha + sigma), and is scaled back onto the target's signal.
    Raises ValueError for eta outside [0, 1], and for other splits.
    """
    check_eta(eta)
    check_choice("split", split, SPLITS)
    if eta == 0:
        return target, 0.0
    if split == "posterior":
        noise = eta * target.sigma * math.sqrt(1 - (target.sbar / source.sbar) ** 2)
        return Node(target.time, target.alpha, math.sqrt(target.sigma**2 - noise**2)), noise
    level = target.fraction * (1 + (target.fraction / source.fraction - 1) * eta)
    down = Node(target.time, target.alpha, target.alpha * level / (1 - level))
    return down, math.sqrt(target.sigma**2 - down.sigma**2)
