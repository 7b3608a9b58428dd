"""Images from class labels, as a diffusers pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image
from torch import Tensor

from fastsample.sampling.noise import Generators, draw_noise
from fastsample.tarflow.decode import DecodeReport
from fastsample.tarflow.model import TarFlowModel
from fastsample.tarflow.plans import PLAN_FILE, BlockPlan, Plan

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class TarFlowPipelineOutput(BaseOutput):  # type: ignore[misc]
    """Images, and what decoding them took."""

    images: list[Image.Image] | np.ndarray[Any, Any] | Tensor
    report: DecodeReport


class TarFlowPipeline(DiffusionPipeline):
    """Samples a TarFlow. `plan` says how unless a call gives a plan; it is saved and loaded with the pipeline.

    Without a plan decoding is sequential. `fastsample.tarflow.plan(pipe.transformer)` makes one.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(self, transformer: TarFlowModel) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.plan: Plan | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> TarFlowPipeline:
        """As diffusers' `from_pretrained`, with its arguments; loads the plan too, where a local folder has one."""
        pipe: TarFlowPipeline = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if (Path(pretrained_model_name_or_path) / PLAN_FILE).is_file():
            pipe.plan = Plan.load(pretrained_model_name_or_path)
        return pipe

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """As diffusers' `save_pretrained`; writes the plan beside the model."""
        super().save_pretrained(save_directory, **kwargs)
        if self.plan is not None:
            self.plan.save(save_directory)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | list[int] | None = None,
        *,
        num_images_per_label: int = 1,
        guidance: float = 0.0,
        annealed_guidance: bool = True,
        attention_temperature: float = 1.0,
        method: str | None = None,
        plan: Plan | BlockPlan | None = None,
        denoise: bool = True,
        generator: Generators = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images of `class_labels`, each `num_images_per_label` times; None is without labels.

        `method`, `plan` and the guidance are those of :meth:`TarFlowModel.decode`; without a method the pipeline's
        plan is used, and no plan is sequential. `denoise` takes the noise of training away by one Tweedie step.
        `latents` [B, T, C] are standard normal; else `generator` draws them, a list one image each, so that an image
        does not depend on its batch. `output_type` is "pil", "np" [B, H, W, C] or "pt" [B, C, H, W], in [0, 1].

        Returns a :class:`TarFlowPipelineOutput`, or a tuple of its two fields.
        Raises ValueError for wrong labels, shapes, plans or types, before any pass.
        """
        model = self.transformer
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type = {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
        if num_images_per_label < 1:
            raise ValueError(f"num_images_per_label = {num_images_per_label}: give 1 or more")
        labels = self._labels(class_labels, num_images_per_label)
        count = num_images_per_label if labels is None else len(labels)
        if method is None:
            plan = plan or self.plan
            method = "sequential" if plan is None else "gs-jacobi"
        if latents is None:
            latents = draw_noise(model.var.new_empty(count, *model.var.shape), generator)
        with self.progress_bar(total=len(model.blocks)) as bar:
            images, report = model.decode(
                latents.to(model.device, model.dtype),
                labels,
                method=method,
                plan=plan,
                guidance=guidance,
                annealed_guidance=annealed_guidance,
                attention_temperature=attention_temperature,
                on_block=lambda index, image: bar.update(),
            )
        if denoise:
            images = model.denoise(images, labels)
        self.maybe_free_model_hooks()
        made = _converted((images.float() / 2 + 0.5).clamp(0, 1), output_type)
        return TarFlowPipelineOutput(images=made, report=report) if return_dict else (made, report)

    def _labels(self, given: int | list[int] | None, repeats: int) -> Tensor | None:
        """Labels [B] on the model's device; ValueError for one that is no class of the model's."""
        if given is None:
            return None
        labels = torch.tensor([given] if isinstance(given, int) else given, device=self.transformer.device)
        labels = labels.repeat_interleave(repeats)
        self.transformer.check_labels(labels, len(labels))
        return labels


def _converted(images: Tensor, output_type: str) -> list[Image.Image] | np.ndarray[Any, Any] | Tensor:
    """Images [B, C, H, W] in [0, 1] as `output_type`."""
    if output_type == "pt":
        return images
    arrays: np.ndarray[Any, Any] = images.permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return arrays
    pixels = (255 * arrays).round().astype(np.uint8)
    return [Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in pixels]
