"""Where a pipeline's denoisers and their attention modules are, and which models cannot be gated."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

DENOISERS = ("unet", "transformer", "transformer_2", "dit", "controlnet")
JOINT = (
    "SD3", "Flux", "Chroma", "QwenImage", "AuraFlow", "CogVideoX", "CogView", "HunyuanVideo", "HunyuanImage", "Mochi",
    "HiDream", "ZImage", "Lumina2", "OmniGen", "Bria", "LongCatImage",
)  # fmt: skip
DISGUISED = ("PRX", "StableCascade")
TEXTLESS = ("DiTTransformer2DModel", "UNet2DModel")
CONCATENATED = "concatenates text to the keys of self-attention, so neither can be cached alone"


TIMESTEPS = ("timestep", "timesteps", "t")
"""What denoisers call their timestep."""


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """The hooks registered on `module` through diffusers' HookRegistry, by name; empty where there is no registry."""
    found: dict[str, Any] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
    return found


def timestep_argument(module: nn.Module) -> str | None:
    """The name of a denoiser's timestep argument; None when it has none."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in TIMESTEPS if name in parameters), None)


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's denoising networks by component name; ValueError, with a reason, where T-GATE cannot work."""
    components = getattr(pipe, "components", {})
    found = {name: components[name] for name in DENOISERS if isinstance(components.get(name), nn.Module)}
    if not found:
        raise ValueError(f"pipe = {type(pipe).__name__} has none of the components {', '.join(DENOISERS)}")
    for module in found.values():
        check_class(type(inner(module)).__name__)
    if hasattr(type(pipe), "image_guidance_scale") or getattr(pipe, "do_perturbed_attention_guidance", False):
        raise ValueError(
            f"pipe = {type(pipe).__name__} guides with three branches, of which T-GATE would drop the wrong one"
        )
    return found


def check_class(name: str) -> None:
    """Raise ValueError, with the reason, for a denoiser class whose attention cannot be cached."""
    if name.startswith(JOINT) or ("ControlNet" in name and name.startswith(JOINT)):
        raise ValueError(
            f"{name} has joint attention: text and image tokens attend to each other in one softmax, so there is no "
            "cross-attention to gate. Use a solver with fewer steps, or diffusers' FirstBlockCacheConfig"
        )
    if name.startswith(DISGUISED):
        raise ValueError(f"{name} {CONCATENATED}")
    if name in TEXTLESS:
        raise ValueError(f"{name} reads no text: it has no cross-attention to gate")


def check_caches(name: str, denoiser: nn.Module) -> None:
    """Raise ValueError where another cache is on the denoiser: each would count and skip the other's steps."""
    model = inner(denoiser)
    hooks = [hook for module in model.modules() for hook in hooks_of(module)]
    if getattr(model, "is_cache_enabled", False) or any("cache" in hook or "broadcast" in hook for hook in hooks):
        raise ValueError(f"pipe.{name} has another cache, which would count other steps: disable_cache() first")
    if "forward" in vars(model) and not (hasattr(model, "_diffusers_hook") or hasattr(model, "_hf_hook")):
        raise ValueError(
            f"pipe.{name}.forward was replaced by another package (DeepCache, cache-dit, ..): disable that first"
        )


def attention_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Its attention modules that return what a block adds to its input, by name.

    Raises ValueError where text is concatenated to their keys (Kandinsky 2, DeepFloyd IF).
    """
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    found = {}
    for name, module in inner(denoiser).named_modules():
        if isinstance(module, Attention) and module.added_kv_proj_dim is not None:
            raise ValueError(f"{type(inner(denoiser)).__name__} {CONCATENATED}")
        adds = not getattr(module, "residual_connection", False) and getattr(module, "rescale_output_factor", 1) == 1
        if isinstance(module, (Attention, AttentionModuleMixin)) and adds:
            found[name] = module
    return found


TEXT_ARGUMENTS = ("encoder_hidden_states", "context")


class TextReader:
    """Whether calls of an attention module read text: it is given, by name or by place, and not the latents again.

    `possible`: the module's forward has an argument for it.
    """

    def __init__(self, module: nn.Module) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        self._name = next((name for name in TEXT_ARGUMENTS if name in names), None)
        self._place = names.index(self._name) if self._name else -1
        self.possible = self._name is not None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._name is None:
            return False
        text = kwargs.get(self._name, args[self._place] if len(args) > self._place else None)
        hidden = args[0] if args else kwargs.get("hidden_states")
        return text is not None and text is not hidden


def inner(module: nn.Module) -> nn.Module:
    """The module itself, out of torch.compile's wrapper."""
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original
