"""The bundled text-to-image models and their metrics: load offline, score images, features of real images.

`text_to_image` is a Stable Diffusion UNet that predicts noise, `flow_text_to_image` a Stable Diffusion 3 transformer
trained by flow matching. Both draw the scenes of `scenes.py`, with one VAE and one classifier.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from fastsample.demo.classifier import AttributeClassifier
from fastsample.demo.scenes import ATTRIBUTES, Scene, render_batch, sample_scenes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

CLASSIFIER_FILE = "classifier.safetensors"
CONSISTENCY_FILE = "picard/consistency.safetensors"
MODELS = ("text_to_image", "flow_text_to_image")
GUIDANCE = 3.0
"""A guidance scale at which both models draw what is asked for."""


def model_path(name: str = "text_to_image") -> Path:
    """The diffusers folder of a bundled model, one of MODELS; ValueError for another name."""
    if name not in MODELS:
        raise ValueError(f"name = {name!r}: no bundled model, use one of {', '.join(MODELS)}")
    return Path(__file__).parent / name


def load_pipeline(
    dtype: torch.dtype | None = None, device: str | torch.device = "cpu", *, name: str = "text_to_image"
) -> DiffusionPipeline:
    """A bundled pipeline, offline, without progress bars; float32 when no dtype is given.

    `name` is one of MODELS: a StableDiffusionPipeline or a StableDiffusion3Pipeline. ValueError for another name.
    """
    folder = model_path(name)
    from diffusers import DiffusionPipeline  # seconds to load; the metrics do without

    pipe = DiffusionPipeline.from_pretrained(folder, dtype=dtype or torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_consistency() -> dict[str, Tensor]:
    """The Picard consistency model of `text_to_image` by the names of its tensors, for guidance 3.

    It is what `ParallelSampler(pipe, consistency=..)` takes, whose first sweeps then come nearer.
    """
    tensors: dict[str, Tensor] = load_file(Path(__file__).parent / CONSISTENCY_FILE)
    return tensors


@functools.lru_cache(maxsize=1)
def load_classifier() -> AttributeClassifier:
    """The attribute classifier in float32 on the CPU, in evaluation mode; one shared instance."""
    model = AttributeClassifier()
    model.load_state_dict(load_file(model_path() / CLASSIFIER_FILE))
    return model.eval().requires_grad_(False)


def prompt_fidelity(images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Fractions of right attributes and of wholly right prompts, then of each attribute.

    Images are [n, 3, 32, 32] in [0, 1]; prompts are captions of scenes. An image that is not finite is wrong.
    """
    if len(images) != len(prompts) or not prompts:
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt an image")
    truth = torch.tensor([Scene.from_caption(prompt).labels for prompt in prompts])
    clean, finite = _prepared(images)
    logits = load_classifier()(clean)
    guesses = torch.stack([logits[name].argmax(1) for name in ATTRIBUTES], 1)
    right = (guesses == truth) & finite[:, None]
    by_attribute = dict(zip(ATTRIBUTES, right.double().mean(0).tolist(), strict=True))
    whole = right.all(1).double().mean().item()
    return {"attributes": right.double().mean().item(), "prompts": whole, **by_attribute}


def features(images: Tensor) -> NDArray[np.float64]:
    """[n, 64] classifier features in float64 of images in [0, 1], for the Frechet distance."""
    clean, _ = _prepared(images)
    return load_classifier().features(clean).double().numpy()


@functools.lru_cache(maxsize=8)
def real_features(n: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """[n, 64] features of real images of held-out scenes; shared, so do not change them."""
    scenes = sample_scenes(n, seed, held_out=True)
    return features(torch.from_numpy(render_batch(scenes, seed)))


def _prepared(images: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 CPU images without non-finite values, and which images were finite throughout."""
    images = images.detach().float().cpu()
    finite = images.isfinite().flatten(1).all(1)
    return images.nan_to_num(0.0, 1.0, 0.0).clamp(0, 1), finite
