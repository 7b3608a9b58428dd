"""The config keys of every scheduler here, and the decorator that gives a class its own besides."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from diffusers.configuration_utils import register_to_config

from fastsample.schedules.config import MODEL_CONFIG

COMMON_CONFIG: dict[str, Any] = {
    **MODEL_CONFIG,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "lambda_min_clipped": -math.inf,
    "timestep_grid": None,
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "lower_order_final": True,
    "discard_next_to_last_sigma": False,
    "dualfast": 0.0,
}
"""Config keys of every scheduler here, named and meant as in diffusers, and with its defaults.

Ours: `timestep_grid`, a grid by name; `discard_next_to_last_sigma`, which lays out one more step and leaves out
the one before the end, as AUTOMATIC1111 does for some samplers; `dualfast`, see
:func:`fastsample.tables.transforms.dualfast`.
"""

Scheduler = TypeVar("Scheduler")


def configured(
    common: Mapping[str, Any] = COMMON_CONFIG, /, **own: Any
) -> Callable[[type[Scheduler]], type[Scheduler]]:
    """Give a scheduler class an `__init__` with the `common` config keys and its `own` (key=default)."""

    def decorate(cls: type[Scheduler]) -> type[Scheduler]:
        defaults = {**common, **own}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("self", kind)]
        parameters += [inspect.Parameter(key, kind, default=value) for key, value in defaults.items()]
        signature = inspect.Signature(parameters)

        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            signature.bind(self, *args, **kwargs)  # a TypeError that names an unknown key
            self._prepare()

        __init__.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = register_to_config(__init__)  # type: ignore[method-assign]
        return cls

    return decorate
