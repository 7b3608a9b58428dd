"""Registering T-GATE's hooks on attention modules, and taking them off without a trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

from fastsample.pipelines.denoisers import hooks_of

HOOK = "fastsample_tgate"


def register(module: nn.Module, hook: ModelHook) -> Callable[[], None]:
    """Put `hook` on `module`; what takes it off again. Raises ValueError where there is one of another gate."""
    if HOOK in hooks_of(module):
        raise ValueError(
            f"{type(module).__name__} is gated already, for a pipeline that shares it: remove that first"
        )
    had_registry = "_diffusers_hook" in vars(module)
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
    return lambda: _remove(module, keep_registry=had_registry)


def _remove(module: nn.Module, *, keep_registry: bool) -> None:
    """Remove our hook; hooks that were registered after it stay, which diffusers 0.42's remove_hook gets wrong.

    A registry left empty goes too, but for `keep_registry`.
    """
    registry: Any = module._diffusers_hook
    place = registry._hook_order.index(HOOK)
    later = registry._fn_refs[place + 1] if place + 1 < len(registry._fn_refs) else None
    below = registry._fn_refs[place].original_forward
    forward = later.forward if later is not None and later.original_forward is not None else None
    registry.remove_hook(HOOK, recurse=False)
    if later is not None and forward is not None:
        later.forward, later.original_forward = forward, below
    if not registry.hooks and not keep_registry:
        del module._diffusers_hook
        vars(module).pop("forward", None)


def unhooked(state: dict[str, Any]) -> dict[str, Any]:
    """A module's state with our hooks off the modules inside, of the same weights: what copies and pickles hold.

    diffusers' hooks cannot be pickled, and what a copied one calls is the module that it was copied from.
    """
    twins: dict[int, nn.Module] = {}

    def twin(module: nn.Module) -> nn.Module:
        if id(module) not in twins:
            twins[id(module)] = made = copy.copy(module)
            held = vars(made)
            held["_modules"] = children(held["_modules"])
            if hooks_of(module).keys() == {HOOK}:
                del held["_diffusers_hook"], held["forward"]
        return twins[id(module)]

    def children(of: dict[str, nn.Module | None]) -> dict[str, nn.Module | None]:
        return {name: None if child is None else twin(child) for name, child in of.items()}

    return {**state, "_modules": children(state["_modules"])}
