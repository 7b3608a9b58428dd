"""Where a pipeline's denoisers and their attention modules are, and which models cannot be gated."""

from __future__ import annotations

from typing import Any

from torch import nn

DENOISERS = ("unet", "transformer", "transformer_2", "dit", "controlnet")
JOINT = (
    "SD3", "Flux", "Chroma", "QwenImage", "AuraFlow", "CogVideoX", "CogView", "HunyuanVideo", "HunyuanImage", "Mochi",
    "HiDream", "ZImage", "Lumina2", "OmniGen", "Bria", "LongCatImage",
)  # fmt: skip
DISGUISED = ("PRX", "StableCascade")


def find_denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's denoising networks by component name; ValueError, with a reason, where T-GATE cannot work."""
    components = getattr(pipe, "components", {})
    found = {name: components[name] for name in DENOISERS if isinstance(components.get(name), nn.Module)}
    if not found:
        raise ValueError(f"pipe = {type(pipe).__name__} has none of the components {', '.join(DENOISERS)}")
    for module in found.values():
        check_class(type(inner(module)).__name__)
    if hasattr(pipe, "image_guidance_scale") or getattr(pipe, "do_perturbed_attention_guidance", False):
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
        raise ValueError(f"{name} concatenates text to the keys of self-attention, so neither can be cached alone")


def attention_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Its attention modules that return what a block adds to its input, by name."""
    from diffusers.models.attention import AttentionModuleMixin
    from diffusers.models.attention_processor import Attention

    return {
        name: module
        for name, module in inner(denoiser).named_modules()
        if isinstance(module, (Attention, AttentionModuleMixin))
        and not getattr(module, "residual_connection", False)
        and getattr(module, "rescale_output_factor", 1) == 1
    }


def inner(module: nn.Module) -> nn.Module:
    """The module itself, out of torch.compile's wrapper."""
    original = getattr(module, "_orig_mod", module)
    assert isinstance(original, nn.Module)
    return original
