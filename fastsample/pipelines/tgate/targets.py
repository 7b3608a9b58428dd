"""What T-GATE can work on: networks whose text comes in by cross-attention, and the modules that it goes through."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention
from torch import nn

from fastsample.pipelines.denoisers import NAMES, Denoiser, denoisers, inner
from fastsample.pipelines.guidance.steps import check_scheduler

JOINT = (
    "SD3", "Flux", "Chroma", "QwenImage", "AuraFlow", "CogVideoX", "CogView", "HunyuanVideo", "HunyuanImage", "Mochi",
    "HiDream", "ZImage", "Lumina2", "OmniGen", "Bria", "LongCatImage", "ConsisID", "EasyAnimate", "ErnieImage",
    "GlmImage", "Ideogram4", "JoyImage", "Krea2", "MotifVideo", "OvisImage",
)  # fmt: skip
DISGUISED = ("PRX", "StableCascade")
TEXTLESS = ("DiTTransformer2DModel", "UNet2DModel")
PRIORS = ("PriorTransformer",)  # they make image embeddings, of text that is among their tokens
CONCATENATED = "concatenates text to the keys of self-attention, so neither can be cached alone"

TEXT_ARGUMENTS = ("encoder_hidden_states", "context")
"""What attention modules call the text."""


def gated_denoisers(pipe: Any) -> list[Denoiser]:
    """The denoisers to gate; ValueError, with the reason, where T-GATE cannot work."""
    found = [denoiser for denoiser in denoisers(pipe) if type(denoiser.module).__name__ not in PRIORS]
    if not found:
        raise ValueError(
            f"pipe = {type(pipe).__name__} has none of the components that could be gated: {', '.join(NAMES)}, or "
            "another network that is called with a timestep and reads text"
        )
    check_scheduler(pipe)
    for denoiser in found:
        check_class(type(denoiser.module).__name__)
    if hasattr(type(pipe), "image_guidance_scale") or getattr(pipe, "do_perturbed_attention_guidance", False):
        raise ValueError(
            f"pipe = {type(pipe).__name__} guides with three branches, of which T-GATE would drop the wrong one"
        )
    return found


def check_class(name: str) -> None:
    """Raise ValueError, with the reason, for a denoiser class whose attention cannot be cached."""
    if name.startswith(JOINT):
        raise ValueError(
            f"{name} has joint attention: text and image tokens attend to each other in one softmax, so there is no "
            "cross-attention to gate. Use a solver with fewer steps, or diffusers' FirstBlockCacheConfig"
        )
    if name.startswith(DISGUISED):
        raise ValueError(f"{name} {CONCATENATED}")
    if name in TEXTLESS:
        raise ValueError(f"{name} reads no text: it has no cross-attention to gate")


def attention_modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Its attention modules that return what a block adds to its input, by name.

    Raises ValueError where text is concatenated to their keys (Kandinsky 2, DeepFloyd IF).
    """
    found = {}
    for name, module in inner(denoiser).named_modules():
        if isinstance(module, Attention) and module.added_kv_proj_dim is not None:
            raise ValueError(f"{type(inner(denoiser)).__name__} {CONCATENATED}")
        adds = not getattr(module, "residual_connection", False) and getattr(module, "rescale_output_factor", 1) == 1
        if isinstance(module, (Attention, AttentionModuleMixin)) and adds:
            found[name] = module
    return found


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
