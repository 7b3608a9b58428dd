"""Which of diffusers' hooks are on a module."""

from __future__ import annotations

from typing import Any

from torch import nn


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """The hooks registered on `module` through diffusers' HookRegistry, by name; empty where there is no registry."""
    found: dict[str, Any] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return found
