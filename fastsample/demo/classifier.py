"""The classifiers behind the metrics of the bundled models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastsample.demo.scenes import ATTRIBUTES


class AttributeClassifier(nn.Module):
    """Images [n, 3, 32, 32] in [0, 1] to logits of each attribute; 64 features in between."""

    def __init__(self, channels: tuple[int, ...] = (24, 48, 64), features: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, target in zip((3, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(source, target, 3, padding=1), nn.BatchNorm2d(target), nn.ReLU()]
            layers += [nn.Conv2d(target, target, 3, 2, padding=1), nn.BatchNorm2d(target), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 16, features))
        self.heads = nn.ModuleDict({name: nn.Linear(features, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, images: Tensor) -> Tensor:
        """[n, 64] features of images in [0, 1]."""
        result: Tensor = self.body(2 * images - 1)
        return result

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.features(images))
        return {name: head(features) for name, head in self.heads.items()}


class DigitClassifier(nn.Module):
    """Images [n, 1, 16, 16] in [0, 1] to logits of the 10 digits; 32 features in between."""

    def __init__(self, channels: tuple[int, ...] = (16, 32), features: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for source, target in zip((1, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(source, target, 3, 2, padding=1), nn.BatchNorm2d(target), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 16, features))
        self.head = nn.Linear(features, 10)

    def features(self, images: Tensor) -> Tensor:
        """[n, 32] features of images in [0, 1]."""
        result: Tensor = self.body(2 * images - 1)
        return result

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.features(images)))
        return result
