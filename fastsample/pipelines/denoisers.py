"""A pipeline's denoisers: which components they are, what they are called with, and their hooks. The one list."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from diffusers.hooks import ModelHook
from torch import Tensor, nn

from fastsample.sampling.replay import GraphedForward

NAMES = ("unet", "transformer")
"""Components that denoise whatever they are called with; others do when they are called with a timestep."""

TIMESTEPS = ("timestep", "timesteps", "t")
"""What denoisers call their timestep."""

LATENTS = ("sample", "hidden_states")
"""What they call their latents, where these do not come first."""

UNBATCHED = (
    "img_ids",
    "txt_ids",
    "rotary",
    "rope",
    "freqs",
    "pos_embed",
    "scale_factor",
    "states_scale",
    "skip_layers",
)
"""In the names of arguments without a batch dimension, whose first one may be of the batch's size by chance."""

BATCH_SECOND = ("encoder_hidden_states_llama3",)
"""Arguments whose batch is their second dimension: the first one is the text encoder's layers."""

MADE_EVERY_STEP = ("residual", "controlnet", "block_samples")
"""In the names of arguments that a ControlNet makes anew in every step, row by row."""

LIBRARIES = {"_diffusers_hook", "_hf_hook"}
"""What diffusers and accelerate leave on a module whose forward they have replaced."""


@dataclass(frozen=True)
class Denoiser:
    """A component `name` of a pipeline that its sampling loop calls."""

    name: str
    component: nn.Module

    @property
    def module(self) -> nn.Module:
        """The network itself, out of torch.compile's wrapper."""
        return inner(self.component)

    @property
    def timestep(self) -> str | None:
        """The name of its timestep argument; None when it has none."""
        return timestep_argument(self.module)

    @property
    def is_controlnet(self) -> bool:
        """Whether what it makes is an argument of another denoiser, not a prediction."""
        return self.name.startswith("controlnet")

    @property
    def group(self) -> str:
        """Denoisers of one group are evaluated in turn, as the two experts of Wan 2.2: what all predictions are."""
        return "controlnet" if self.is_controlnet else "denoiser"

    @property
    def compiled(self) -> bool:
        """Whether torch.compile has it, as a wrapper or in place."""
        return self.module is not self.component or self.component._compiled_call_impl is not None

    @property
    def fixed_shapes(self) -> bool:
        """Whether calls of another shape cost it dear: torch.compile's, and those that are graphs."""
        return self.compiled or isinstance(vars(self.module).get("forward"), GraphedForward)


def denoisers(pipe: Any) -> list[Denoiser]:
    """The components of `pipe` that its sampling loop calls; empty where there are none, or no components."""
    components = getattr(pipe, "components", {})  # anything but a pipeline has none
    return [
        Denoiser(name, part)
        for name, part in components.items()
        if isinstance(part, nn.Module) and (name in NAMES or timestep_argument(inner(part)))
    ]


def inner(module: nn.Module) -> nn.Module:
    """The module itself, out of torch.compile's wrapper."""
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original


def timestep_argument(module: nn.Module) -> str | None:
    """The name of a network's timestep argument; None when it has none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in TIMESTEPS if name in parameters), None)


def timestep_reader(module: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """What takes the timestep out of the arguments of a call of `module`; None where it is not given."""
    name = timestep_argument(module) or ""
    place = [*inspect.signature(module.forward).parameters].index(name) if name else 0

    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return kwargs.get(name, args[place] if name and len(args) > place else None)

    return read


def unbatched(name: str) -> bool:
    """Whether an argument of this name has no batch dimension."""
    return any(part in name for part in UNBATCHED)


def latents_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | list[Tensor]:
    """The latents in a denoiser's call, a tensor or a list of one for each row: what comes first, or is so named.

    Raises ValueError where there are none.
    """
    given = (*args, *(kwargs.get(name) for name in LATENTS), *kwargs.values())
    found: Any = next((value for value in given if isinstance(value, Tensor) or of_tensors(value)), None)
    if found is None:
        raise ValueError(f"the denoiser was called without latents: it has {', '.join(kwargs)}")
    latents: Tensor | list[Tensor] = found
    return latents


def of_tensors(value: Any) -> bool:
    """Whether it is a list of tensors alone."""
    return isinstance(value, list) and bool(value) and all(isinstance(part, Tensor) for part in value)


def hooks_of(module: nn.Module) -> dict[str, ModelHook]:
    """The hooks registered on `module` through diffusers' HookRegistry, by name; empty where there is no registry."""
    registry = vars(module).get("_diffusers_hook")
    return registry.hooks if registry is not None else {}


def check_caches(denoiser: Denoiser) -> None:
    """Raise ValueError where a cache across steps is on the denoiser: it counts the steps of a run of its own."""
    name, model = denoiser.name, denoiser.module
    hooks = {hook for module in model.modules() for hook in hooks_of(module)}
    if getattr(model, "is_cache_enabled", False) or any("cache" in hook or "broadcast" in hook for hook in hooks):
        raise ValueError(f"pipe.{name} has another cache, which would count other steps: disable_cache() first")
    replaced = vars(model).get("forward")
    if replaced == MethodType(type(model).forward, model):  # put back by accelerate, whose hooks were removed
        return
    if not (replaced is None or isinstance(replaced, GraphedForward)) and not vars(model).keys() & LIBRARIES:
        raise ValueError(
            f"pipe.{name}.forward was replaced by another package (DeepCache, cache-dit, ..): disable that first"
        )
