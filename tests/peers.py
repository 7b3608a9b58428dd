"""diffusers' own classes, to compare with."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def peer(name: str, **config: Any) -> Any:
    """The scheduler class `name` with Stable Diffusion's betas, without its advice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name)(**SD, **config)
