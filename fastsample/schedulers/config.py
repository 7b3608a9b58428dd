"""The config keys of every scheduler here: their defaults, what they may be, how another class's config is read."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

from diffusers.configuration_utils import register_to_config

from fastsample.sampling.noise import NOISES
from fastsample.schedulers.grids.request import check_grid
from fastsample.schedules.config import MODEL_CONFIG, is_flow, understood
from fastsample.solvers import available
from fastsample.tables.preset import read_preset

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
    "grid_options": None,
    "passed_sigmas": "auto",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "lower_order_final": True,
    "discard_next_to_last_sigma": False,
    "dualfast": 0.0,
    "stable_guidance": "auto",
    "preset": None,
    "preset_guidance": None,
    "noise": "independent",
}
"""Config keys of every scheduler here, named and meant as in diffusers, and with its defaults.

Ours: `timestep_grid`, a grid by name, and `grid_options`, a dict of that grid's options (a and b of "beta", threshold
of "linear-quadratic"; `rho` of "karras" is a key of its own). `passed_sigmas` says which wins where sigmas are passed
to `set_timesteps` and a grid is named too: they ("use"), the grid ("replace"), or ("auto") the grid over those that
pipelines of flow-matching models pass by themselves, and all others over the grid. diffusers' flags, as there, space
any sigmas of flow-matching models anew, but for "use". `discard_next_to_last_sigma` lays out one more step and leaves
out the one before the end, as AUTOMATIC1111 does for some samplers; `dualfast`, see
:func:`fastsample.tables.transforms.dualfast`. `preset` holds tuned tables as the JSON text of a
:class:`fastsample.tables.preset.Preset`, `preset_guidance` says which of its guidance scales is meant: runs of as
many evaluations as one of them has are made by it, in place of solver and grid. `noise` "brownian" makes the noise
of a run's steps the increments of one path (:mod:`fastsample.sampling.brownian`): one seed follows it at any number
of steps. `stable_guidance` is the guidance scale under which the steps of a multistep solver shall be stable, where
they are too long for its order at a lower one or one in between (:mod:`fastsample.tables.stability`); give the scale
that you sample with, 1 where there is no guidance. "auto" is 7 on flow-matching models, where multistep solvers then
stay with Euler until steps are short, and no limit (None) on others and on configs of diffusers' own multistep
classes, whose values are kept.
"""

CHOICES: dict[str, tuple[Any, ...]] = {
    "final_sigmas_type": ("zero", "sigma_min"),
    "time_shift_type": ("exponential", "linear"),
    "timestep_type": ("discrete", "continuous"),
    "sigma_schedule": (None, "karras", "exponential"),
    "edm_time": (None, "log", "atan"),
    "passed_sigmas": ("auto", "use", "replace"),
    "noise": NOISES,
}
POSITIVE = (
    *("flow_shift", "shift", "rho", "sigma_min", "sigma_max", "sigma_data"),
    *("sample_max_value", "clip_sample_range", "timestep_scaling"),
)
OF_FLOW_MODELS = ("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "flow_shift")
NOT_OF_FLOW_MODELS = ("timestep_spacing", "steps_offset", "lambda_min_clipped", "rescale_betas_zero_snr")
"""Keys that diffusers' configs of flow-matching models may have, and that mean nothing there."""
SHIFTS = ("shift", "base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
"""Keys of flow-matching configs that are read, by the grids or by pipelines, though no class here has them."""


def check_config(config: Mapping[str, Any], kind: str) -> None:
    """Raise ValueError unless every common key has a value that means something on a `kind` of schedule."""
    for key, choices in CHOICES.items():
        if config.get(key, choices[0]) not in choices:
            raise ValueError(f"{key} = {config[key]!r}: use one of {', '.join(map(repr, choices))}")
    for key in POSITIVE:
        _check_number(config, key, 0.0, math.inf)
    scale = config.get("stable_guidance", "auto")
    number = isinstance(scale, Real) and not isinstance(scale, bool)
    if scale not in ("auto", None) and not (number and float(scale) >= 1):
        raise ValueError(f"stable_guidance = {scale!r}: give a guidance scale of at least 1, None or 'auto'")
    if config.get("shift_terminal"):  # 0 is none, as in diffusers
        _check_number(config, "shift_terminal", 0.0, 1.0)
    _check_number(config, "dynamic_thresholding_ratio", 0.0, 1.0 + 2**-52)
    lowest = config.get("lambda_min_clipped")
    if lowest is not None and (not isinstance(lowest, Real) or isinstance(lowest, bool) or not lowest < math.inf):
        raise ValueError(f"lambda_min_clipped = {lowest!r}: give a log-SNR, -5.1 for cosine betas, or -inf for none")
    for key, least in (("steps_offset", 0), ("num_train_timesteps", 2), ("original_inference_steps", 1)):
        value = config.get(key, least)
        if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
            raise ValueError(f"{key} = {value!r}: give an integer of at least {least}")
    offset, trained = config.get("steps_offset", 0), config.get("num_train_timesteps", 1000)
    if offset >= trained:
        raise ValueError(f"steps_offset = {offset}: give less than num_train_timesteps = {trained}")
    if kind != "flow":
        for key in OF_FLOW_MODELS:
            if config.get(key) and config[key] != COMMON_CONFIG[key]:
                raise ValueError(f"{key} = {config[key]!r}: only flow-matching models have it; leave it out")
    check_grid(config, kind)


def check_switches(config: Mapping[str, Any], switches: Iterable[str]) -> None:
    """Raise ValueError unless all these keys are on or off."""
    for key in switches:
        if config.get(key) not in (None, False, True):
            raise ValueError(f"{key} = {config[key]!r}: use True or False")


def read_config(
    cls: type, config: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What diffusers' `from_config` is to get: the config with the family of its model in it, and the options.

    Raises ValueError for options that `cls` does not have, and for models that keep their own scheduler.
    """
    own = set(inspect.signature(cls).parameters)
    config, options = dict(config), dict(options)
    if options.get("preset") is not None:
        options["preset"] = read_preset(options["preset"]).to_json()
    for key, value in options.items():
        if key in own or key in ("return_unused_kwargs", "torch_dtype"):
            continue
        if key not in SHIFTS:
            near = difflib.get_close_matches(key, own, n=1)
            remedy = f"did you mean {near[0]}?" if near else "leave it out; its signature says what it takes"
            raise ValueError(f"option {key} = {value!r} is unknown to {cls.__name__}: {remedy}")
        config[key] = value
        _check_number(config, key, 0.0, math.inf)
    if is_flow({**config, **options}):
        for key in NOT_OF_FLOW_MODELS:
            if options.get(key, COMMON_CONFIG[key]) != COMMON_CONFIG[key]:
                raise ValueError(
                    f"option {key} = {options[key]!r}: it has no effect on a flow-matching model; leave it out, or "
                    "name a timestep_grid"
                )
    config, meant = understood(config, distilled=_is_distilled(cls, {**config, **options}))
    _check_number(config, "shift", 0.0, math.inf)
    return config, {**meant, **{key: value for key, value in options.items() if key in own}}


def _is_distilled(cls: type, config: Mapping[str, Any]) -> bool:
    """Whether what samples is made for consistency models: a class of theirs, or any with such a solver."""
    solver = (
        available().get(str(config.get("solver_name")))
        if "solver_name" in inspect.signature(cls).parameters
        else None
    )
    return bool(getattr(cls, "_distilled", False) or (solver and solver.distilled))


def _check_number(config: Mapping[str, Any], key: str, above: float, below: float) -> None:
    value = config.get(key)
    if value is None:
        return
    if not isinstance(value, Real) or isinstance(value, bool) or not above < float(value) < below:
        ends = "a positive number" if below == math.inf else f"a number between {above:g} and {below:g}"
        raise ValueError(f"{key} = {value!r}: give {ends}")


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
        cls._switches = tuple(key for key, value in defaults.items() if isinstance(value, bool))  # type: ignore[attr-defined]
        return cls

    return decorate
