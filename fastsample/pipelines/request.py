"""What a text-to-image or text-to-video pipeline is asked for, in arguments by the names that they have there."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastsample.pipelines.denoisers import denoisers
from fastsample.pipelines.overlay import class_beneath

TRUE_GUIDANCE = "true_cfg_scale"
"""Classifier-free guidance of pipelines whose `guidance_scale` is told to a network distilled with it."""

GUIDANCE = ("guidance_scale", "distilled_guidance_scale")
FRAMES = ("num_frames", "frames", "video_length")
OWN = ("prompt", "negative_prompt", "num_inference_steps", "generator", "output_type", "return_dict")
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt")
SOURCES = ("image", "images", "video", "videos", "mask", "conditions", "controls", "hint")
"""The last words of arguments that something to start from is given by."""

DECODERS = ("vae", "movq", "vqvae", "vqgan")
"""The components that decode, where there is one."""


@dataclass(frozen=True)
class Request:
    """What is asked for beside prompt, steps, guidance and noise; None leaves it to the pipeline.

    `height` and `width` in pixels; `frames` of a video; `extra` are other arguments of the pipeline's call.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    negative_prompt: str | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    def call(
        self, pipe: Any, prompts: Sequence[str], steps: int, guidance: float, seeds: Sequence[int]
    ) -> dict[str, Any]:
        """The arguments of `pipe` for one image or video of each prompt, with noise of its seed.

        `guidance` goes to what :func:`guidance_argument` names. A prompt alone is not given as a list of one, which
        some pipelines do not take. Raises ValueError for what the pipeline cannot be asked.
        """
        known = _parameters(pipe)
        argument = guidance_argument(pipe, self.negative_prompt)
        self._check(pipe, argument, guidance)
        call: dict[str, Any] = {
            "prompt": _alone(list(prompts)),
            "num_inference_steps": steps,
            "generator": _alone([torch.Generator().manual_seed(seed) for seed in seeds]),
            "output_type": "np",
        }
        if "use_resolution_binning" in known:  # which would draw another size, and stretch it
            call["use_resolution_binning"] = False
        call |= self._size(pipe)
        if self.frames is not None:
            call[next(name for name in FRAMES if name in known)] = self.frames
        if argument is not None:
            call[argument] = guidance
        negative = self.negative_prompt
        if negative is None and argument == TRUE_GUIDANCE and guidance > 1:
            negative = ""  # without one there is no guidance
        if negative is not None:
            call["negative_prompt"] = _alone([negative] * len(prompts))
        return call | dict(self.extra)

    def _size(self, pipe: Any) -> dict[str, int]:
        """The size that is asked for. Stable Diffusion passes over one side alone: it gets its own other one too."""
        given = {name: side for name in ("height", "width") if (side := getattr(self, name)) is not None}
        size = getattr(getattr(getattr(pipe, "unet", None), "config", None), "sample_size", None)
        if len(given) != 1 or size is None:
            return given
        sides = (size, size) if isinstance(size, int) else size
        own = {name: side * pipe.vae_scale_factor for name, side in zip(("height", "width"), sides, strict=True)}
        return own | given

    def _check(self, pipe: Any, argument: str | None, guidance: float) -> None:
        kind, known = class_beneath(pipe).__name__, _parameters(pipe)
        if argument is None and guidance != 1:
            told = "the scale is that of its guider" if "guider" in pipe.components else "its network has none"
            raise ValueError(f"guidance = {guidance:g}: {kind} takes no guidance scale ({told}); leave it out")
        if self.negative_prompt is not None and "negative_prompt" not in known:
            raise ValueError(f"negative_prompt = {self.negative_prompt!r}: {kind} takes none; leave it out")
        if self.negative_prompt is not None and argument is not None and guidance <= 1:
            raise ValueError(
                f"negative_prompt = {self.negative_prompt!r} with guidance = {guidance:g}: it does nothing without "
                "guidance; give a guidance above 1"
            )
        if self.frames is not None and not any(name in known for name in FRAMES):
            raise ValueError(f"frames = {self.frames}: {kind} makes images, not videos; leave it out")
        taken = {*OWN, *FRAMES, *GUIDANCE, *COUNTS, TRUE_GUIDANCE, "height", "width"} & {
            name for name, _ in self.extra
        }
        if taken:
            raise ValueError(f"argument {min(taken)} of {kind} has an option of its own; use that")
        for name, value in self.extra:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or list(known)
                raise ValueError(f"argument {name} = {value!r}: {kind} takes none; did you mean {', '.join(near)}?")
            if isinstance(value, str) and isinstance(known[name].default, (int, float)):
                raise ValueError(f"argument {name} = {value!r}: {kind} takes a number, as {known[name].default}")
            if "Callable" in str(known[name].annotation):
                raise ValueError(
                    f"argument {name} = {value!r}: {kind} takes a function, which no text is; leave it out"
                )


def guidance_argument(pipe: Any, negative_prompt: str | None = None) -> str | None:
    """The argument of `pipe` that guidance goes to; None where it takes none.

    Where there are two, the one of a distilled network is meant if the network is told it and no negative prompt
    is given, else true (classifier-free) guidance.
    """
    known, distilled = _parameters(pipe), _is_told_guidance(pipe)
    if TRUE_GUIDANCE in known and (negative_prompt is not None or not distilled):
        return TRUE_GUIDANCE
    return next((name for name in GUIDANCE if name in known and (name == GUIDANCE[0] or distilled)), None)


def default_guidance(pipe: Any, negative_prompt: str | None = None) -> float:
    """The pipeline's own guidance scale; 1, which means none, where it has none."""
    argument = guidance_argument(pipe, negative_prompt)
    own = _parameters(pipe)[argument].default if argument else None
    return float(own) if isinstance(own, (int, float)) else 1.0


def classifier_free_scale(pipe: Any) -> float:
    """The scale by which `pipe` combines two branches by itself: 1 where a distilled network is told one instead."""
    return 1.0 if _is_told_guidance(pipe) else default_guidance(pipe)


def check_draws(pipe: Any) -> None:
    """Raise ValueError unless `pipe` makes images or videos of prompts by steps of a scheduler."""
    kind, known, parts = class_beneath(pipe).__name__, _parameters(pipe), pipe.components
    needed = [name for name, one in known.items() if one.default is one.empty and name != "prompt"]
    source = ", ".join(sources(pipe))
    decoder = next((name for name in DECODERS if name in parts and parts[name] is None), None)
    sized = "height" in known and "width" in known
    reasons = {
        f"takes no prompt{source and ', but '}{source}": "prompt" not in known,
        f"needs {', '.join(needed)} beside a prompt": needed,
        "makes sound": not sized and any("audio" in name or "waveform" in name for name in known),
        f"starts from {source}": not sized and source,
        "has no height and width, so that it draws no images": not sized,
        "takes no num_inference_steps": "num_inference_steps" not in known,
        "has no scheduler": parts.get("scheduler") is None,
        f"has no {decoder}": decoder,
        "has no unet or transformer": not denoisers(pipe),
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(f"model = {kind} {reason}: give a text-to-image or text-to-video pipeline")


def sources(pipe: Any) -> list[str]:
    """The arguments of `pipe` that a picture or video to start from is given by."""
    found = [name for name in _parameters(pipe) if name.split("_")[-1] in SOURCES and "attention" not in name]
    return [name for name in found if "ip_adapter" not in name]


def _is_told_guidance(pipe: Any) -> bool:
    """Whether its network was distilled with guidance, and is told the scale."""
    configs = [getattr(denoiser.module, "config", {}) for denoiser in denoisers(pipe)]
    return any(config.get("guidance_embeds", False) for config in configs)


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Those of the pipeline's call, without `self` and what stands for any."""
    found = inspect.signature(class_beneath(pipe).__call__).parameters  # type: ignore[operator]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: one for name, one in found.items() if one.kind in named and name != "self"}


def _alone(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
