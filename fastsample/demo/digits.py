"""The bundled TarFlow of handwritten digits and its metrics: load it offline, score samples."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastsample.demo.classifier import DigitClassifier
from fastsample.tarflow import TarFlowPipeline

SIZE = 16
CLASSIFIER_FILE = "classifier.safetensors"
DIGITS_FILE = "held_out_digits.safetensors"


def model_path() -> Path:
    """The diffusers folder of the bundled TarFlow."""
    return Path(__file__).parent / "tarflow"


def load_pipeline(dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> TarFlowPipeline:
    """The bundled pipeline with its plan, offline, without progress bars; float32 when no dtype is given."""
    pipe = TarFlowPipeline.from_pretrained(model_path(), dtype=dtype or torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@functools.lru_cache(maxsize=1)
def held_out_digits() -> tuple[Tensor, Tensor]:
    """297 digits that were not trained on, [n, 1, 16, 16] in [0, 1], and labels; shared, so do not change them."""
    data = load_file(model_path() / DIGITS_FILE)
    return draw(data["scans"][:, None].float() / 8 - 1, 0.0) / 2 + 0.5, data["labels"].long()


def draw(scans: Tensor, jitter: float = 1.0) -> Tensor:
    """Scans [n, 1, 8, 8] in [-1, 1] at 16x16, moved at random by up to `jitter` with torch's global generator.

    At 1 they are turned by up to 8 degrees, scaled by up to 8 % and shifted by up to half a scan pixel.
    """
    count = len(scans)
    angle, scale, x, y = (torch.rand(4, count) * 2 - 1) * jitter
    angle, scale = angle * math.radians(8), 1 + 0.08 * scale
    turn = torch.stack([angle.cos(), -angle.sin(), x * 0.125, angle.sin(), angle.cos(), y * 0.125], 1)
    turn = turn.view(count, 2, 3)
    turn[:, :, :2] *= scale[:, None, None]
    grid = F.affine_grid(turn, [count, 1, SIZE, SIZE], align_corners=False)
    return (F.grid_sample(scans + 1, grid, "bicubic", align_corners=False) - 1).clamp(-1, 1)


@functools.lru_cache(maxsize=1)
def load_classifier() -> DigitClassifier:
    """The digit classifier in float32 on the CPU, in evaluation mode; one shared instance."""
    model = DigitClassifier()
    model.load_state_dict(load_file(model_path() / CLASSIFIER_FILE))
    return model.eval().requires_grad_(False)


def accuracy(images: Tensor, labels: Tensor) -> float:
    """The fraction of images [n, 1, 16, 16] in [0, 1] in which the classifier sees their label."""
    guesses = load_classifier()(images.float().cpu()).argmax(1)
    return (guesses == labels.cpu()).double().mean().item()


def features(images: Tensor) -> NDArray[np.float64]:
    """[n, 32] classifier features in float64 of images in [0, 1], for the Frechet distance."""
    return load_classifier().features(images.float().cpu()).double().numpy()
